"""Operations on adapters: list, preload, and take up what was installed."""

from __future__ import annotations

import logging
from functools import partial
from typing import Literal

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from quad.core.errors import InputError, UnsupportedError, UsageError, mismatch
from quad.core.sampling import AdapterDefaults
from quad.serve.api import Adapters, AdapterState, Named
from quad.serve.error_response import HttpError, json_response
from quad.serve.operations.operation import Operation
from quad.serve.service import Service

_LOG = logging.getLogger(__name__)
_LONGEST_HEADER = 16 * 2**20  # as of a pack


async def adapters(service: Service, http: HttpRequest) -> Response:
    """Every adapter that a request may name."""
    return json_response(await service.in_thread(partial(_adapters, service)))


async def preload(service: Service, http: HttpRequest) -> Response:
    """A hint: read it now, it will be used soon."""
    name = require_known(service, http)
    await service.in_thread(partial(service.pipe.switch.preload, name))
    return json_response(Named(name), 202)


async def install(service: Service, http: HttpRequest) -> Response:
    """Take up the version that the device's store points to now; the server also looks by itself every few seconds."""
    name, installed = http.path_params["name"], service.installed
    if installed is None:
        raise HttpError(409, UnsupportedError(mismatch("server", "a store of installed adapters", "none", "start it with --store")))
    try:
        await service.update_installed(partial(installed.register, name))
    except InputError as error:
        raise HttpError(404, error) from error
    return json_response(Named(name))


def _adapters(service: Service) -> Adapters:
    tasks = service.pipe.tasks
    states = (
        _adapter(service, name, tuple(task for task, spec in tasks.items() if spec.adapter == name)) for name in service.pipe.adapters
    )
    return Adapters(tuple(state for state in states if state is not None))


def _adapter(service: Service, name: str, tasks: tuple[str, ...]) -> AdapterState | None:
    try:
        manifest = service.pipe.adapter_manifest(name)
    except UsageError:  # it has gone meanwhile
        return None
    installed = service.installed.names if service.installed else ()
    source: Literal["uploaded", "installed", "bundle"] = (
        "uploaded" if name in service.uploaded else "installed" if name in installed else "bundle"
    )
    return AdapterState(
        name=name,
        tasks=tasks,
        rank=manifest.rank,
        bits=manifest.bits,
        size_bytes=manifest.size_bytes,
        source=source,
        defaults=AdapterDefaults() if manifest.defaults is msgspec.UNSET else manifest.defaults,
        headroom=None if manifest.headroom is msgspec.UNSET else manifest.headroom,
        previous=name in service.uploaded and name in service.previous,
    )


def require_known(service: Service, http: HttpRequest) -> str:
    """The adapter that a call names. Raises: HttpError, 404: there is none of that name."""
    name: str = http.path_params["name"]
    if name not in service.pipe.adapters:
        names = ", ".join(service.pipe.adapters) or "none"
        raise HttpError(404, UsageError(mismatch("adapter", f"one of {names}", repr(name), "choose one of these")))
    return name


ADAPTER = "/v1/adapters/{name}"
OPERATIONS = (
    Operation(
        method="GET", path="/v1/adapters", handle=adapters, says="Every adapter that a request may name.", status=200, gives=Adapters
    ),
    Operation(
        method="POST",
        path=f"{ADAPTER}/preload",
        handle=preload,
        says="Read it now, it will be used soon.",
        status=202,
        gives=Named,
        error_statuses=(404,),
    ),
    Operation(
        method="POST",
        path=f"{ADAPTER}/install",
        handle=install,
        says="Take up what the device's store points to now.",
        status=200,
        gives=Named,
        error_statuses=(404, 409, 422),
    ),
)
