"""One server from its first byte to its last: uvicorn over a listener that is already bound, stopped by SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import uvicorn

from quad.serve.app import make_app
from quad.serve.connections.bounded_connection import bounded
from quad.serve.guard import Credentials
from quad.serve.service import Service

_IDLE_S = 30
_GRACE_S = 2.0  # to send the last answers to whoever reads them
_LARGEST_HEAD = 16 * 1024
_WAITING, _ACCEPTED_AT_ONCE = 128, 32  # connections


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Calls at moments of a server's life.

    Args:
        ready: before the first call is answered; whoever connects now waits, and a signal stops the server from here on.
        stop: by the signal that stops it.
    """

    ready: Callable[[], None] = lambda: None
    stop: Callable[[], None] = lambda: None


def serve(service: Service, listener: socket.socket, credentials: Credentials | None, moments: Moments) -> None:
    """Answer calls until SIGTERM or SIGINT; then nothing new begins, what runs is cancelled at its step, and this returns."""
    server = make_server(service, credentials, moments.stop)
    with server.capture_signals():
        moments.ready()
        server.run(sockets=[listener])


def make_server(service: Service, credentials: Credentials | None, on_stop: Callable[[], None] = lambda: None) -> uvicorn.Server:
    """The server itself, for a host that runs it on a thread of its own: `should_exit` stops it there."""
    config = uvicorn.Config(
        make_app(service, credentials),
        http=bounded(service.limits, service.places, credentials),
        loop="quad.serve.connections.event_loop:ServerLoop",
        ws="none",
        lifespan="on",
        log_level="error",  # its warnings are a line for each call of a stranger
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=_IDLE_S,
        backlog=_ACCEPTED_AT_ONCE,
        h11_max_incomplete_event_size=_LARGEST_HEAD,
    )
    return _Server(config, service, on_stop)


class _Server(uvicorn.Server):
    """Stops its requests before it waits for the connections that follow them, and does not die of the signal that stopped it."""

    def __init__(self, config: uvicorn.Config, service: Service, on_stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._service, self._on_stop = service, on_stop

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

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        self._on_stop()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or []:
            listener.listen(_WAITING)  # asyncio takes one number for those that wait and those that it accepts before it reads any

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._service.stop()
        await asyncio.gather(self._service.decoder.close(), self._service.admitter.close())
        asyncio.get_running_loop().call_later(_GRACE_S, self._abort_connections)
        await super().shutdown(sockets)

    def _abort_connections(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()
