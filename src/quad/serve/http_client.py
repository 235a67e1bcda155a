"""HTTP/1.1 to a server on this device, by the standard library alone."""

from __future__ import annotations

import http.client
import os
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import BinaryIO, TypeVar
from urllib.parse import urlsplit

import msgspec

from quad.core.errors import BackendError, QuadError, UsageError, mismatch
from quad.serve.api import JSON, ErrorBody, as_exception, encoded

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
class HttpClient:
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
        data = self.fetch(method, path, None if body is None else encoded(body))
        with self.reporting():
            return msgspec.json.decode(data, type=gives)

    def fetch(self, method: str, path: str, body: bytes | BinaryIO | None = None, kind: str = JSON) -> bytes:
        """One call, and the bytes that answer it. Raises: as `json`."""
        with self.answer(method, path, body, kind) as response, self.reporting():
            return response.read()

    @contextmanager
    def answer(self, method: str, path: str, body: bytes | BinaryIO | None = None, kind: str = JSON) -> Iterator[http.client.HTTPResponse]:
        """One call on a connection of its own, which ends with the block: whoever leaves a stream leaves its request.

        Args:
            body: a file is sent piece by piece.

        Raises: as `json`; what the block raises is its own.
        """
        headers = {} if body is None else {"Content-Type": kind}
        if body is not None and not isinstance(body, bytes):
            headers["Content-Length"] = str(os.fstat(body.fileno()).st_size)
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        connection = self._connection()
        try:
            with self.reporting():
                response = _send(connection, method, path, body, headers)
            with closing(response):  # where the server closes, the connection is the response's
                yield response
        finally:
            connection.close()

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Raises:
        BackendError: the block could not reach the server, or found something else in its place.
        """
        try:
            yield
        except (OSError, http.client.HTTPException) as error:
            actual = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise BackendError(mismatch(self.address, "a running server", actual, "start it: quad serve BUNDLE")) from error
        except msgspec.MsgspecError as error:
            actual = f"something else ({error})"
            raise BackendError(mismatch(self.address, "a quad server's answer", actual, "check the address")) from error

    def _connection(self) -> http.client.HTTPConnection:
        if self.token and not (self.token.isascii() and self.token.isprintable()):
            raise UsageError(mismatch("token", "the text of the server's token file", "something else", "read that file"))
        if "://" not in self.address:
            return _SocketConnection(self.address, self.timeout_s)
        try:
            parts = urlsplit(self.address)
            scheme, name, port = parts.scheme, parts.hostname, parts.port
        except ValueError:
            scheme, name, port = "", None, None
        if scheme != "http" or name is None:
            raise UsageError(mismatch("address", "a socket's path or http://127.0.0.1:PORT", repr(self.address), "see quad serve"))
        return http.client.HTTPConnection(name, port, timeout=self.timeout_s)


def _send(
    connection: http.client.HTTPConnection, method: str, path: str, body: bytes | BinaryIO | None, headers: dict[str, str]
) -> http.client.HTTPResponse:
    """The answer's head. Raises: QuadError, it is a refusal."""
    try:
        connection.request(method, path, body, headers)
    except (BrokenPipeError, ConnectionResetError):  # refused before all of it was sent: the reason waits to be read
        if connection.sock is None:
            raise
    response = connection.getresponse()
    if response.status >= 300:
        with closing(response):
            raise _as_exception(response)
    return response


def _as_exception(response: http.client.HTTPResponse) -> QuadError:
    data = response.read()
    try:
        return as_exception(msgspec.json.decode(data, type=ErrorBody))
    except msgspec.MsgspecError:
        return BackendError(mismatch("server", "a quad server's answer", f"status {response.status}", "check the address"))
