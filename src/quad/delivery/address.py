"""Addresses of repositories: which ones are taken, what of them is shown, and where a redirect may lead."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

from quad.core.errors import UsageError, mismatch

SCHEMES = ("http", "https")
_PORTS = {"http": 80, "https": 443}


class Origin(NamedTuple):
    """The server at an address: scheme, host in small letters, port."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        """As it is written."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}" + (f":{self.port}" if self.port != _PORTS.get(self.scheme) else "")


def without_secrets(url: str) -> str:
    """An address as it may be shown: without user, password, query and fragment, however badly it is written."""
    return re.split(r"[?#]", re.sub(r"//.*@", "//", url, flags=re.DOTALL), maxsplit=1)[0]


def holds_secret(url: str) -> bool:
    """Whether an address has parts that may be secret: a user, a password, a query."""
    return "://" in url and without_secrets(url) != url


def require_plain(option: str, url: str) -> str:
    """An address that may be kept and shown.

    Raises:
        UsageError: it has a user, a password, a query or a fragment; none of them is shown.
    """
    if holds_secret(url):
        expected, next_step = "an address without user, password and query", "leave them out: quad would keep and show them, and sends none"
        raise UsageError(mismatch(option, expected, f"{without_secrets(url)} with more than that", next_step))
    return url


def origin_of(parts: SplitResult) -> Origin:
    """The server at a split address.

    Raises:
        ValueError: its port is none.
    """
    return Origin(parts.scheme, parts.hostname or "", parts.port or _PORTS.get(parts.scheme, 0))


def redirect_origins(url: str, named: Sequence[str]) -> frozenset[Origin]:
    """Origins that a repository may redirect to: its own, by HTTPS too where it is reached by HTTP, and those that the user named.

    Raises:
        UsageError: a named one is no origin.
    """
    own = origin_of(urlsplit(url))
    safer = [Origin("https", own.host, 443)] if (own.scheme, own.port) == ("http", 80) else []
    return frozenset([own, *safer, *map(_named_origin, named)])


def _named_origin(text: str) -> Origin:
    wrong = UsageError(mismatch("--redirect-to", "an origin as https://cdn.example", repr(without_secrets(text)), "leave out what follows"))
    try:
        parts = urlsplit(require_plain("--redirect-to", text))
        origin = origin_of(parts)
    except ValueError as error:
        raise wrong from error
    if parts.scheme not in SCHEMES or not parts.hostname or parts.path.strip("/"):
        raise wrong
    return origin
