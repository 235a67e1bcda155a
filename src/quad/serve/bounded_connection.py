"""One connection: HTTP/1.1 by uvicorn, within bounds."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import h11
import msgspec
from uvicorn.protocols.http.h11_impl import H11Protocol

from quad.core.errors import InputError, mismatch
from quad.serve.api import JSON, error_body
from quad.serve.limits import Limits

_LOG = logging.getLogger(__name__)


class BoundedProtocol(H11Protocol):
    """HTTP/1.1 with bounds on connections, and on the time to send a call's headers and to read its answer; its refusals are JSON."""

    limits: Limits
    _deadline: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        transport.set_write_buffer_limits(0)  # what the system does not take at once is waited for
        if len(self.connections) > self.limits.max_connections:
            _LOG.warning("a connection closed, %d are open", len(self.connections))
            transport.close()
        else:
            self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_received()
        self._answer_read()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(self.limits.body_timeout_s, self.transport.abort)  # a mere close would wait for the reader

    def resume_writing(self) -> None:
        self._answer_read()
        super().resume_writing()

    def handle_events(self) -> None:
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:
            self._head_received()

    def data_received(self, data: bytes) -> None:
        idle = self.timeout_keep_alive_task is not None
        super().data_received(data)
        if idle and self._deadline is None and (self.cycle is None or self.cycle.response_complete):
            self._expect_head()

    def send_400_response(self, msg: str) -> None:
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # the call has its answer
            self.transport.close()
            return
        body = error_body(InputError(mismatch("call", "HTTP/1.1", msg, "see /openapi.json")))
        self.transport.write(
            self.conn.send(h11.Response(status_code=400, headers=[("content-type", JSON), ("connection", "close")])) or b""
        )
        self.transport.write(self.conn.send(h11.Data(data=msgspec.json.encode(body))) or b"")
        self.transport.write(self.conn.send(h11.EndOfMessage()) or b"")
        self.transport.close()

    def _expect_head(self) -> None:
        self._deadline = self.loop.call_later(self.limits.head_timeout_s, self.transport.close)

    def _head_received(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _answer_read(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None


def bounded(limits: Limits) -> type[BoundedProtocol]:
    """The protocol of one server, as uvicorn takes it."""
    return type("BoundedProtocol", (BoundedProtocol,), {"limits": limits})
