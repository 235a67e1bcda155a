"""One server from its first byte to its last: uvicorn over a listener that is already bound, stopped by SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import h11
import msgspec
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from quad.core.errors import InputError, mismatch
from quad.serve.api import JSON, error_body
from quad.serve.app import make_app
from quad.serve.guard import Door
from quad.serve.limits import Limits
from quad.serve.service import Service

_IDLE_S, _GRACE_S = 30, 30
_LARGEST_HEAD = 16 * 1024


def serve(service: Service, listener: socket.socket, door: Door | None) -> None:
    """Answer calls until SIGTERM or SIGINT; then nothing new begins, what runs is cancelled at its step, and this returns."""
    make_server(service, door).run(sockets=[listener])


def make_server(service: Service, door: Door | None) -> uvicorn.Server:
    """The server itself, for a host that runs it on a thread of its own: `should_exit` stops it there."""
    config = uvicorn.Config(
        make_app(service, door),
        http=_protocol(service.limits),
        loop="asyncio",
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=_IDLE_S,
        timeout_graceful_shutdown=_GRACE_S,
        h11_max_incomplete_event_size=_LARGEST_HEAD,
    )
    return _Server(config, service)


class _Server(uvicorn.Server):
    """Stops its requests before it waits for the connections that follow them, and does not die of the signal that stopped it."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._service.stop()
        await super().shutdown(sockets)


def _protocol(limits: Limits) -> type[H11Protocol]:
    class BoundedProtocol(H11Protocol):
        """HTTP/1.1 with a bound on connections, and on the time that a call's headers may take; its own refusals are JSON too."""

        _deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > limits.max_connections:
                transport.close()
            else:
                self._expect_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._head_came()
            super().connection_lost(exc)

        def handle_events(self) -> None:
            before = self.cycle
            super().handle_events()
            if self.cycle is not before:
                self._head_came()

        def data_received(self, data: bytes) -> None:
            idle = self.timeout_keep_alive_task is not None
            super().data_received(data)
            if idle and self._deadline is None and (self.cycle is None or self.cycle.response_complete):
                self._expect_head()

        def timeout_keep_alive_handler(self) -> None:
            super().timeout_keep_alive_handler()
            if self.transport.get_write_buffer_size():  # an answer that nobody has read by now
                self.transport.abort()

        def send_400_response(self, msg: str) -> None:
            body = error_body(InputError(mismatch("call", "HTTP/1.1", msg, "see /openapi.json")))
            self.transport.write(
                self.conn.send(h11.Response(status_code=400, headers=[("content-type", JSON), ("connection", "close")])) or b""
            )
            self.transport.write(self.conn.send(h11.Data(data=msgspec.json.encode(body))) or b"")
            self.transport.write(self.conn.send(h11.EndOfMessage()) or b"")
            self.transport.close()

        def _expect_head(self) -> None:
            self._deadline = self.loop.call_later(limits.head_timeout_s, self.transport.close)

        def _head_came(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

    return BoundedProtocol
