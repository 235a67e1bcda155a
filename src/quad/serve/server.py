"""One server from its first byte to its last: uvicorn over a listener that is already bound, stopped by SIGTERM or SIGINT."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from quad.serve.app import make_app
from quad.serve.bounded_connection import bounded
from quad.serve.guard import Credentials
from quad.serve.service import Service

_IDLE_S, _GRACE_S = 30, 30
_LARGEST_HEAD = 16 * 1024


def serve(service: Service, listener: socket.socket, credentials: Credentials | None) -> None:
    """Answer calls until SIGTERM or SIGINT; then nothing new begins, what runs is cancelled at its step, and this returns."""
    make_server(service, credentials).run(sockets=[listener])


def make_server(service: Service, credentials: Credentials | None) -> uvicorn.Server:
    """The server itself, for a host that runs it on a thread of its own: `should_exit` stops it there."""
    config = uvicorn.Config(
        make_app(service, credentials),
        http=bounded(service.limits),
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
