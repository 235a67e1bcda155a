"""Server-sent events of one request, and noticing that nobody reads them any more."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from quad.serve.book import Entry
from quad.serve.service import Service

EVENT_STREAM = "text/event-stream"
KEEP_ALIVE_S = 10.0


def event(kind: str, data: msgspec.Struct) -> bytes:
    """One event: `step` with a `Step`, or `end` with a `RequestState`."""
    return b"event: " + kind.encode() + b"\ndata: " + msgspec.json.encode(data) + b"\n\n"


async def until_gone(receive: Callable[[], Awaitable[Message]], work: Coroutine[Any, Any, None]) -> bool:
    """Do the work until it is done, or the client has gone; whether it has."""
    doing, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((doing, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            return True
        with suppress(TimeoutError):
            doing.result()
            return False
        return True
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

    def __init__(self, service: Service, entry: Entry) -> None:
        super().__init__(headers={"Cache-Control": "no-store"})
        del self.headers["content-length"]
        self._service, self._entry = service, entry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(self._service.limits.body_timeout_s):  # who does not read for so long has gone
                await send(message)

        with self._service.stream(), self._service.book.listening(self._entry) as stay:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            if scope["method"] == "HEAD":
                stay()
                await send({"type": "http.response.body"})
            elif not await until_gone(receive, self._send_all(send_in_time)):
                stay()

    async def _send_all(self, send: Send) -> None:
        sent, ended = 0, False
        while not ended:
            change, new, ended = self._entry.change, self._entry.steps[sent:], self._entry.ended
            sent += len(new)
            pieces = [event("step", step) for step in new] + ([event("end", self._entry.tell())] if ended else [])
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
