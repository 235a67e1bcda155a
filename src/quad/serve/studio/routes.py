"""Answers beside the API of a server with a page: the page's files, which need no token, and the bundle's, which do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path

from starlette.requests import Request as HttpRequest
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from quad.core.errors import InputError, mismatch
from quad.core.manifest import BUNDLE_FILE
from quad.serve.error_response import HttpError
from quad.serve.service import Service
from quad.serve.studio.files import PageFile

BUNDLE_PATH = "/bundle/{path:path}"
REPORT_PATH = "/report.html"


def studio_routes(service: Service) -> Iterator[Route]:
    """The routes of the page; none where the server has no page."""
    if service.page is None:
        return
    for path, file in service.page.items():
        yield Route(path, _answer(file), methods=["GET"])
    yield Route(BUNDLE_PATH, _bundle_file(service), methods=["GET"])
    if service.report is not None:
        yield Route(REPORT_PATH, _report(service.report), methods=["GET"])


def _answer(file: PageFile) -> Callable[[HttpRequest], Awaitable[Response]]:
    headers = {"Cache-Control": "no-cache", "ETag": file.etag}

    async def answer(http: HttpRequest) -> Response:
        if file.etag in http.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(file.content, 200, headers, file.media_type)

    return answer


def _bundle_file(service: Service) -> Callable[[HttpRequest], Awaitable[Response]]:
    """A file of the bundle, whole or a range of it: for a runtime in the page. Only names that the manifest has."""

    async def answer(http: HttpRequest) -> Response:
        bundle, name = service.pipe.bundle, http.path_params["path"]
        if name != BUNDLE_FILE and name not in bundle.manifest.files:
            raise HttpError(404, InputError(mismatch("bundle", "one of its files", repr(name), f"see {BUNDLE_FILE}")))
        path = bundle.root / name if name == BUNDLE_FILE else await service.in_thread(partial(bundle.path, name))
        return FileResponse(path, headers={"Cache-Control": "no-store"}, media_type="application/octet-stream")

    return answer


def _report(path: Path) -> Callable[[HttpRequest], Awaitable[Response]]:
    """A page with styles and pictures inside it, which this origin's policy would not show: it is saved, not opened here."""

    async def answer(_http: HttpRequest) -> Response:
        return FileResponse(path, headers={"Cache-Control": "no-store"}, media_type="application/octet-stream")

    return answer
