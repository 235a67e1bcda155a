"""Answers beside the API of a server with a page: the page's files, which need no token, and the bundle's, which do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from starlette.requests import Request as HttpRequest
from starlette.responses import FileResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from quad.core.errors import InputError, mismatch
from quad.core.manifest import BUNDLE_FILE
from quad.serve.error_response import HttpError
from quad.serve.operations.stream import PIECE_BYTES
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
        return _InPieces(file, headers)

    return answer


class _InPieces(Response):
    """A file of the page, no more of it given away than its reader has taken: whoever has no token may ask for it, and many at once."""

    def __init__(self, file: PageFile, headers: Mapping[str, str]) -> None:
        super().__init__(headers={**headers, "Content-Length": str(len(file.content))}, media_type=file.media_type)
        self._content = file.content

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        content = memoryview(b"" if scope["method"] == "HEAD" else self._content)
        for begin in range(0, len(content) or 1, PIECE_BYTES):
            end = begin + PIECE_BYTES
            await send({"type": "http.response.body", "body": bytes(content[begin:end]), "more_body": end < len(content)})


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
