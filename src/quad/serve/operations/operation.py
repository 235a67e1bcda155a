"""An operation of the API: how it is called, what answers it, and what it is documented by."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from quad.core.errors import UsageError, mismatch
from quad.serve.error_response import HttpError
from quad.serve.service import Service

T = TypeVar("T")
Handler = Callable[[Service, Request], Awaitable[Response]]


@dataclass(frozen=True)
class Query:
    """One optional value in the query, and its JSON schema."""

    name: str
    schema: Mapping[str, Any]
    says: str


def query_of(kind: type) -> tuple[Query, ...]:
    """The fields of a struct as values of a query; each says of itself what it is."""
    queries = []
    ((schema, *_), defined) = msgspec.json.schema_components([kind])
    for name, field in defined[schema["$ref"].rpartition("/")[2]]["properties"].items():
        plain = next((part for part in field.get("anyOf", ()) if part != {"type": "null"}), field)  # a query has no null: it is left out
        kept = {key: value for key, value in plain.items() if key not in ("description", "default")}
        queries.append(Query(name, kept, plain.get("description", "")))
    return tuple(queries)


def read_query(http: Request, kind: type[T]) -> T:
    """The query as a struct.

    Raises:
        HttpError: 400, a name that it does not have, one given twice, or a value that does not fit.
    """
    pairs = http.query_params.multi_items()
    said, where = dict(pairs), f"query of {http.method} {http.url.path}"
    if len(said) < len(pairs):
        raise HttpError(400, UsageError(mismatch(where, "each name once", "one twice", "leave one out")))
    try:
        values = msgspec.convert(said, kind, strict=False)
    except msgspec.ValidationError as error:
        raise HttpError(400, UsageError(mismatch(where, kind.__name__, f"something else ({error})", "see /openapi.json"))) from error
    if empty := [name for name in said if getattr(values, name) is None]:
        raise HttpError(400, UsageError(mismatch(where, f"a value of {empty[0]}", repr(said[empty[0]]), "leave it out")))
    return values


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
