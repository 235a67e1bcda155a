"""The ASGI application: operations behind the guard, and every error as JSON."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from quad.core.errors import InputError, QuadError, lack_of, mismatch
from quad.serve.error_response import HttpError, error_response, http_error, json_response
from quad.serve.guard import Credentials, Guard
from quad.serve.operations import about as about_calls
from quad.serve.operations import adapters as adapter_calls
from quad.serve.operations import bundle as bundle_calls
from quad.serve.operations import reference as reference_calls
from quad.serve.operations import requests as request_calls
from quad.serve.operations import rollback as rollback_calls
from quad.serve.operations import uploads as upload_calls
from quad.serve.operations.openapi import document
from quad.serve.operations.operation import Operation
from quad.serve.service import Service
from quad.serve.studio.headers import StudioHeaders
from quad.serve.studio.routes import studio_routes

_LOG = logging.getLogger(__name__)

OPERATIONS = tuple(
    operation
    for calls in (request_calls, reference_calls, adapter_calls, upload_calls, rollback_calls, bundle_calls, about_calls)
    for operation in calls.OPERATIONS
)
DOCUMENT_PATH = "/openapi.json"
_GONE = 499  # nobody reads it


def make_app(service: Service, credentials: Credentials | None) -> Starlette:
    """The application of one server; `credentials` is what TCP calls have to bring, None on a Unix socket."""

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        maintenance = asyncio.create_task(service.maintenance_loop())
        yield
        service.stop()
        maintenance.cancel()
        with suppress(asyncio.CancelledError):
            await maintenance

    routes = [*_routes(service), Route(DOCUMENT_PATH, _document, methods=["GET"]), *studio_routes(service)]
    headers = [] if service.page is None else [Middleware(StudioHeaders)]
    handlers: dict[Any, Any] = {
        HTTPException: _no_such_call,
        HttpError: _known_error,
        QuadError: _quad_error,
        ClientDisconnect: _disconnected,
        MemoryError: _lacking,
        OSError: _lacking,
        RuntimeError: _lacking,
        Exception: _fault,
    }
    app = Starlette(
        routes=routes,
        middleware=[*headers, Middleware(Guard, service=service, credentials=credentials)],
        exception_handlers=handlers,
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return app


def _routes(service: Service) -> list[Route]:
    """One route a path, so that a wrong method is told which ones are right."""
    by_path: dict[str, dict[str, Operation]] = {}
    for op in OPERATIONS:
        by_path.setdefault(op.path, {})[op.method] = op
    return [Route(path, _dispatch(service, by_method), methods=list(by_method)) for path, by_method in by_path.items()]


def _dispatch(service: Service, by_method: dict[str, Operation]) -> Callable[[HttpRequest], Awaitable[Response]]:
    async def handle(http: HttpRequest) -> Response:
        return await by_method["GET" if http.method == "HEAD" else http.method].handle(service, http)

    return handle


@functools.cache
def _whole_document() -> dict[str, Any]:
    return document(OPERATIONS)


async def _document(_http: HttpRequest) -> Response:
    return json_response(_whole_document())


async def _no_such_call(http: HttpRequest, error: HTTPException) -> Response:
    call = f"{http.method} {http.scope['path']}"
    return error_response(
        HttpError(error.status_code, InputError(mismatch("call", "one of the API", repr(call), f"see {DOCUMENT_PATH}")), error.headers)
    )


async def _known_error(http: HttpRequest, error: HttpError) -> Response:
    _log_refusal(http, error)
    return error_response(error)


async def _quad_error(http: HttpRequest, error: QuadError) -> Response:
    _log_refusal(http, http_error(error))
    return error_response(http_error(error))


def _log_refusal(http: HttpRequest, error: HttpError) -> None:
    """The route, not the path, which holds the id of a request; the class of the error, not its message, which quotes the client."""
    _LOG.info("%s %s: answered %d, %s", http.method, _route(http), error.status, type(error.error).__name__)


def _route(http: HttpRequest) -> str:
    """The path with the names of its parameters in place of their values."""
    path: str = http.scope["path"]
    for name, value in http.path_params.items():
        path = path.replace(str(value), f"{{{name}}}")
    return path


async def _disconnected(_http: HttpRequest, _error: ClientDisconnect) -> Response:
    return Response(status_code=_GONE)


async def _lacking(http: HttpRequest, error: Exception) -> Response:
    """The machine has too little to answer this call now; whatever else it is, is a fault."""
    lack = lack_of("server", error)
    if lack is None:
        raise error
    return await _quad_error(http, lack)


async def _fault(http: HttpRequest, error: Exception) -> Response:
    _LOG.error("%s %s: a fault of quad itself, %s", http.method, _route(http), type(error).__name__)
    return error_response(HttpError(500, QuadError(f"a fault of quad itself, {type(error).__name__}: {error}; report it")))
