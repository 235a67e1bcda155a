"""The operation that goes back to the version of an uploaded adapter that ran before."""

from __future__ import annotations

import logging
from functools import partial

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from quad.core.errors import UsageError, mismatch
from quad.serve.api import Named
from quad.serve.error_response import HttpError, json_response
from quad.serve.operations.adapters import ADAPTER, require_known
from quad.serve.operations.operation import Operation
from quad.serve.operations.uploads import require_uploads
from quad.serve.service import Service

_LOG = logging.getLogger(__name__)


async def roll_back(service: Service, http: HttpRequest) -> Response:
    """The version of an uploaded adapter that ran before runs again; a second call returns to the later one."""
    require_uploads(service)
    name = require_known(service, http)
    async with service.changing:
        before = service.previous.get(name)
        if name not in service.uploaded or before is None:
            raise HttpError(409, UsageError(mismatch("adapter", "an uploaded one with a version before", repr(name), "remove it instead")))
        await service.in_thread(partial(service.scheduler.register, before, name, mapped=True))
        service.previous[name], service.uploaded[name] = service.uploaded[name], before
        _LOG.info("adapter %s: rolled back by a client", name)
    return json_response(Named(name))


OPERATIONS = (
    Operation(
        method="POST",
        path=f"{ADAPTER}/rollback",
        handle=roll_back,
        says="Go back to the version of an uploaded adapter that ran before.",
        status=200,
        gives=Named,
        error_statuses=(403, 404, 409, 422),
    ),
)
