"""Answers that are sent in pieces: the events of one request, its picture; and noticing that nobody reads them any more."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any

import msgspec
from PIL.Image import Image
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from quad.runtime.provenance.facts import PictureFacts
from quad.runtime.provenance.png import plain_png
from quad.serve.api import Preview
from quad.serve.pictures import PNG, to_png
from quad.serve.request_record import RequestRecord
from quad.serve.service import Service

EVENT_STREAM = "text/event-stream"
KEEP_ALIVE_S = 10.0
PIECE_BYTES = 64 * 1024


def event(kind: str, data: msgspec.Struct) -> bytes:
    """One event: `step` with a `Step`, `preview` with a `Preview`, or `end` with a `RequestState`."""
    return b"event: " + kind.encode() + b"\ndata: " + msgspec.json.encode(data) + b"\n\n"


async def until_gone(receive: Callable[[], Awaitable[Message]], work: Coroutine[Any, Any, None]) -> bool:
    """Do the work until it is done, or the client has gone; whether it has."""
    doing, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((doing, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            return True
        doing.result()
        return False
    finally:
        for task in (doing, leaving):
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


async def _gone(receive: Callable[[], Awaitable[Message]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """A response that goes on until the request has ended; the request is given up when its last reader leaves before that."""

    media_type = EVENT_STREAM

    def __init__(self, service: Service, record: RequestRecord) -> None:
        super().__init__(headers={"Cache-Control": "no-store"})
        del self.headers["content-length"]
        self._service, self._record = service, record

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._service.stream(), self._service.registry.listening(self._record) as stay:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            if scope["method"] == "HEAD":
                stay()
                await send({"type": "http.response.body"})
            elif not await until_gone(receive, self._send_all(send)):
                stay()

    async def _send_all(self, send: Send) -> None:
        sent, ended, seen = 0, False, -1
        while not ended:
            change, new, ended = self._record.change, self._record.steps[sent:], self._record.ended
            sent += len(new)
            pieces = [event("step", step) for step in new]
            if (preview := self._record.ticket.preview) is not None and preview.index > seen and not ended:
                seen = preview.index
                pieces.append(event("preview", Preview(seen, plain_png(preview.picture))))
            if ended:
                pieces.append(event("end", self._record.to_state()))
            if pieces:
                await send({"type": "http.response.body", "body": b"".join(pieces), "more_body": not ended})
            if not ended:
                await self._wait(send, change)

    async def _wait(self, send: Send, change: asyncio.Event) -> None:
        """Until something changes; a comment now and then shows both sides that the other is there."""
        while not change.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(KEEP_ALIVE_S):
                    await change.wait()
                    return
            await send({"type": "http.response.body", "body": b": waiting\n\n", "more_body": True})


class PictureFile(Response):
    """A picture as PNG. A few at once are held and sent, the others wait; no more of one is given away than its reader has taken.

    A reader that takes too long for the whole of it loses the connection.
    """

    media_type = PNG

    def __init__(self, service: Service, picture: Image, facts: PictureFacts | None) -> None:
        super().__init__(headers={"Cache-Control": "no-store"})
        self._service, self._picture, self._facts = service, picture, facts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await until_gone(receive, self._fetch(scope, send))

    async def _fetch(self, scope: Scope, send: Send) -> None:
        async with self._service.fetching.place(scope["state"].get("peer")):
            data = memoryview(await self._service.in_encoder(partial(to_png, self._picture, self._facts, self._service.png)))
            self.headers["content-length"] = str(len(data))
            try:
                async with asyncio.timeout(self._service.limits.body_timeout_s):
                    await self._send(data, send)
            except TimeoutError:
                scope["state"]["abort"]()

    async def _send(self, data: memoryview, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for begin in range(0, len(data), PIECE_BYTES):
            end = begin + PIECE_BYTES
            await send({"type": "http.response.body", "body": bytes(data[begin:end]), "more_body": end < len(data)})
