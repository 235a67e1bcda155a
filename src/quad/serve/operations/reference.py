"""The operation that asks the full-precision model for the same picture, to lay beside the bundle's."""

from __future__ import annotations

import msgspec
from PIL.Image import Image
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from quad.core.errors import UnsupportedError, mismatch
from quad.serve.api import NewRequest
from quad.serve.connections.body import read_struct
from quad.serve.error_response import HttpError, json_response
from quad.serve.operations.operation import Operation
from quad.serve.operations.requests import read_pictures
from quad.serve.operations.stream import until_gone
from quad.serve.pictures import to_png
from quad.serve.service import Service
from quad.serve.studio.reference_process import ReferencePicture


async def reference_picture(service: Service, http: HttpRequest) -> Response:
    """Make it and answer with it; who leaves before that ends the work."""
    service.require_running()
    process = service.reference
    if process is None:
        error = UnsupportedError(mismatch("server", "one with a full-precision model", "none", "start quad studio with --against MODEL"))
        raise HttpError(409, error)
    with service.stream(), service.budget.account() as account:
        body = await read_struct(http, NewRequest, service.limits, account)
        pictures: list[Image | None] = []
        if await until_gone(http.receive, read_pictures(service, http, body, account, pictures)):
            raise ClientDisconnect
        image, mask = (None if picture is None else to_png(picture) for picture in pictures)
        answers: list[ReferencePicture] = []

        async def work() -> None:
            answers.append(await process.make(msgspec.structs.replace(body, image=image, mask_image=mask)))

        if await until_gone(http.receive, work()):
            raise ClientDisconnect
    return json_response(answers[0])


OPERATIONS = (
    Operation(
        method="POST",
        path="/v1/reference",
        handle=reference_picture,
        says="Ask the full-precision model for a picture.",
        status=200,
        gives=ReferencePicture,
        reads=NewRequest,
        error_statuses=(400, 408, 409, 413, 415, 422, 503),
    ),
)
