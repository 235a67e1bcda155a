"""HTTP/1.1 to a server on this device, by the standard library alone."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import urlsplit

import msgspec

from quad.core.errors import BackendError, QuadError, UsageError, mismatch
from quad.serve.api import JSON, ErrorBody, raised

T = TypeVar("T")


class _SocketConnection(http.client.HTTPConnection):
    """A connection to a Unix socket."""

    def __init__(self, path: str, timeout: float | None) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


@dataclass(frozen=True)
class Wire:
    """How to reach one server.

    Args:
        address: a socket's path, or `http://127.0.0.1:PORT`.
        token: what a TCP server asks for.
        timeout_s: the longest silence; a stream sends something every few seconds.
    """

    address: str
    token: str | None = field(default=None, repr=False)
    timeout_s: float = 60.0

    def json(self, method: str, path: str, gives: type[T], body: msgspec.Struct | None = None) -> T:
        """One call, and its JSON answer as a struct; JSON goes there where there is a body.

        Raises:
            QuadError: as the server refused. BackendError: there is no server.
        """
        sent = None if body is None else msgspec.json.encode(body)
        return msgspec.json.decode(self.fetch(method, path, sent, JSON), type=gives)

    def fetch(self, method: str, path: str, body: bytes | None = None, kind: str = JSON) -> bytes:
        """One call, and the bytes that answer it. Raises: as `json`."""
        with self.answer(method, path, body, kind) as response:
            return response.read()

    @contextmanager
    def answer(self, method: str, path: str, body: bytes | None = None, kind: str = JSON) -> Iterator[http.client.HTTPResponse]:
        """One call on a connection of its own, which ends with the block: whoever leaves a stream leaves its request.

        Raises: as `json`.
        """
        connection = self._connection()
        headers = {"Content-Type": kind} if body is not None else {}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        try:
            try:
                connection.request(method, path, body, headers)
            except (BrokenPipeError, ConnectionResetError):  # refused before all of it was sent: the reason waits to be read
                if connection.sock is None:
                    raise
            with closing(connection.getresponse()) as response:  # where the server closes, the connection is the response's
                if response.status >= 300:
                    raise _refused(response)
                yield response
        except (OSError, http.client.HTTPException) as error:
            found = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise BackendError(mismatch(self.address, "a running server", found, "start it: quad serve BUNDLE")) from error
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        if "://" not in self.address:
            return _SocketConnection(self.address, self.timeout_s)
        parts = urlsplit(self.address)
        if parts.scheme != "http" or parts.hostname is None:
            raise UsageError(mismatch("address", "a socket's path or http://127.0.0.1:PORT", repr(self.address), "see quad serve"))
        return http.client.HTTPConnection(parts.hostname, parts.port, timeout=self.timeout_s)


def _refused(response: http.client.HTTPResponse) -> QuadError:
    data = response.read()
    try:
        return raised(msgspec.json.decode(data, type=ErrorBody))
    except msgspec.MsgspecError:
        return BackendError(mismatch("server", "a quad server's answer", f"status {response.status}", "check the address"))
