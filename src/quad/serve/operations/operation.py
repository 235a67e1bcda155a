"""An operation of the API: how it is called, what answers it, and what it is documented by."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from quad.serve.service import Service

Handler = Callable[[Service, Request], Awaitable[Response]]


@dataclass(frozen=True)
class Query:
    """One optional number in the query, with its bounds."""

    name: str
    most: float
    says: str


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One method of one path.

    Args:
        says: one line for the document.
        status: of a good answer.
        gives: the struct that it carries, or a media type.
        reads: the struct of the body, or its media type.
        error_statuses: statuses beside those that any call may meet.
    """

    method: str
    path: str
    handle: Handler
    says: str
    status: int
    gives: type | str | None
    reads: type | str | None = None
    query: tuple[Query, ...] = ()
    error_statuses: tuple[int, ...] = ()
