"""The check of every call: on loopback TCP only who knows the token may call, and only under the loopback's own names."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from quad.core.errors import InputError, mismatch
from quad.serve.connections.rare_warning import RareWarning
from quad.serve.error_response import HttpError, error_response
from quad.serve.service import Service

_LOG = logging.getLogger(__name__)

_CLOSE = {"Connection": "close"}
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


@dataclass(frozen=True)
class Credentials:
    """The token and host name that a call over TCP has to bring.

    A page in a browser can reach a port of this machine, under a name of its own choice even.
    """

    port: int
    token: str

    def accept(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Whether a call with these may be made."""
        try:
            self.check(headers)
        except HttpError:
            return False
        return True

    def check(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Raises:
        HttpError: 421 for another host's name, 401 for a missing or wrong token. The connection is closed then, and no body read.
        """
        by_name = _by_name(headers)
        self._check_host(by_name.get(b"host", []))
        kind, _, token = b"".join(by_name.get(b"authorization", [])).partition(b" ")
        if kind.lower() != b"bearer" or not hmac.compare_digest(token.strip(), self.token.encode()):
            error = InputError(mismatch("Authorization", "Bearer and this server's token", "none or another", "read its token file"))
            raise HttpError(401, error, {"WWW-Authenticate": "Bearer", **_CLOSE})

    def check_host(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """The check of a call for a file of the page, which holds no secret: no token, but not another host's name.

        Raises:
            HttpError: 421.
        """
        self._check_host(_by_name(headers).get(b"host", []))

    def _check_host(self, values: Sequence[bytes]) -> None:
        hosts = [value.decode("latin-1").lower() for value in values]
        if len(hosts) != 1 or hosts[0] not in {*_LOOPBACK, *(f"{name}:{self.port}" for name in _LOOPBACK)}:
            error = InputError(mismatch("Host", f"127.0.0.1:{self.port}", ", ".join(hosts) or "none", "call it by that name"))
            raise HttpError(421, error, _CLOSE)


def _by_name(headers: Iterable[tuple[bytes, bytes]]) -> dict[bytes, list[bytes]]:
    by_name: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        by_name.setdefault(name.lower(), []).append(value)
    return by_name


class Guard:
    """Stands before everything else; counts the answers."""

    def __init__(self, app: ASGIApp, service: Service, credentials: Credentials | None) -> None:
        """Args:
        credentials: None on a Unix socket, whose file mode is the check.
        """
        self._app, self._service, self._credentials = app, service, credentials
        self._warning = RareWarning(_LOG)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        begun = False

        async def counted(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                self._count(message["status"])
            await send(message)

        try:
            self._check(scope)
        except HttpError as error:
            self._warning(
                "a call over TCP answered %d: %s", error.status, "no token of this server" if error.status == 401 else "another host"
            )
            await error_response(error)(scope, receive, counted)
            return
        try:
            await self._app(scope, receive, counted)
        except Exception:  # a fault, which is answered further out
            if not begun:
                self._count(500)
            raise

    def _check(self, scope: Scope) -> None:
        if self._credentials is None:
            return
        if scope["method"] in ("GET", "HEAD") and scope["path"] in (self._service.page or ()):
            self._credentials.check_host(scope["headers"])
        else:
            self._credentials.check(scope["headers"])

    def _count(self, status: int) -> None:
        answers = self._service.answers
        answers[status] = answers.get(status, 0) + 1
