"""One connection: HTTP/1.1 by uvicorn, within bounds."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
import sys
from typing import Any

import h11
import msgspec
from uvicorn.protocols.http.h11_impl import H11Protocol

from quad.core.errors import InputError, mismatch
from quad.serve.api import JSON, error_body
from quad.serve.connections.places import Places
from quad.serve.connections.rare_warning import RareWarning
from quad.serve.guard import Credentials
from quad.serve.limits import Limits

_LOG = logging.getLogger(__name__)
_PEER = struct.Struct("3i")  # pid, uid, gid


class BoundedProtocol(H11Protocol):
    """HTTP/1.1 with bounds on connections, and on the time to send a call's headers and to read its answer; its refusals are JSON."""

    limits: Limits
    places: Places
    credentials: Credentials | None
    refused: RareWarning
    _deadline: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        transport.set_write_buffer_limits(0)  # what the system does not take at once is waited for
        self.app_state = {**self.app_state, "peer": peer_of(transport.get_extra_info("socket")), "abort": self.abort}
        self._expect_head()
        self.places.enter(self)
        if self.credentials is None:
            self.places.admit(self)

    @property
    def is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    @property
    def descriptor(self) -> int:
        return int(self.transport.get_extra_info("socket").fileno())

    def abort(self) -> None:
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.places.leave(self)
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
            if self.credentials is not None and self.places.is_stranger(self) and self.credentials.accept(self.headers):
                self.places.admit(self)

    def data_received(self, data: bytes) -> None:
        idle = self.timeout_keep_alive_task is not None
        super().data_received(data)
        if idle and self._deadline is None and (self.cycle is None or self.cycle.response_complete):
            self._expect_head()

    def send_400_response(self, msg: str) -> None:
        self.refused("a connection was closed: what it sent is no HTTP/1.1")
        if self.cycle is not None:
            self.cycle.disconnected = True  # a call whose body goes wrong has this answer, and no other one
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # the call has its answer
            self.transport.close()
            return
        body = error_body(InputError(mismatch("call", "HTTP/1.1", msg.rstrip("."), "see /openapi.json")))
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


def peer_of(connection: socket.socket) -> int | None:
    """The process at the other end of a Unix socket, where the system tells it."""
    if connection.family != socket.AF_UNIX or sys.platform != "linux":
        return None
    return int(_PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))[0])


def bounded(limits: Limits, places: Places, credentials: Credentials | None) -> type[BoundedProtocol]:
    """The protocol of one server, as uvicorn takes it."""
    values = {"limits": limits, "places": places, "credentials": credentials, "refused": RareWarning(_LOG)}
    return type("BoundedProtocol", (BoundedProtocol,), values)
