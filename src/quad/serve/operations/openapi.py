"""The OpenAPI 3.1 document, made from the operations and the structs that they read and give."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

import quad
from quad.serve.api import JSON, ErrorBody, Preview, Step
from quad.serve.operations.operation import Operation, Query
from quad.serve.operations.stream import EVENT_STREAM

_ANY_CALL = (401, 421)  # no token, another host
_REASONS: Mapping[int, str] = {
    400: "The body or a parameter is wrong.",
    401: "The token is missing or wrong (loopback TCP only).",
    403: "This server does not take uploads.",
    404: "There is none of that name.",
    408: "The body came too slowly.",
    409: "Not in this state.",
    413: "The body is too large.",
    415: "The body is of another type.",
    421: "The Host header names another host (loopback TCP only).",
    422: "Well-formed, but it does not fit this bundle.",
    503: "No room for it, or the server is stopping; Retry-After says when to ask again.",
}
_EVENT = {
    "type": "object",
    "description": "One event: `step` with a Step, where they are wanted `preview` with a Preview, at last `end` with a RequestState.",
    "properties": {"event": {"enum": ["step", "preview", "end"]}, "data": {"type": "string", "contentMediaType": JSON}},
    "required": ["event", "data"],
}


def document(operations: Sequence[Operation]) -> dict[str, Any]:
    """The whole document, as JSON-like objects."""
    structs = [kind for op in operations for kind in (op.reads, op.gives) if isinstance(kind, type)]
    kinds = list(dict.fromkeys([*structs, ErrorBody, Step, Preview]))
    schemas, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    by_kind = dict(zip(kinds, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for op in operations:
        paths.setdefault(op.path, {})[op.method.lower()] = _operation(op, by_kind)
    return {
        "openapi": "3.1.0",
        "info": {"title": "quad serve", "version": quad.__version__, "description": "Several apps, one resident model, on this device."},
        "security": [{"token": []}, {}],
        "paths": paths,
        "components": {
            "schemas": {name: _plain(schema) for name, schema in components.items()},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "description": "On loopback TCP; the socket needs none."}},
        },
    }


def _operation(op: Operation, by_kind: Mapping[type, Any]) -> dict[str, Any]:
    answers = {str(op.status): _good(op, by_kind)}
    for status in sorted({*op.error_statuses, *_ANY_CALL}):
        gives = by_kind[op.gives] if status == 503 and op.path == "/health" and isinstance(op.gives, type) else by_kind[ErrorBody]
        answers[str(status)] = {"description": _REASONS[status], "content": {JSON: {"schema": gives}}}
    parameters = [_path_parameter(part) for part in op.path.split("/") if part.startswith("{")] + [_query(query) for query in op.query]
    operation: dict[str, Any] = {"operationId": op.handle.__name__, "summary": op.says, "responses": answers}
    if doc := inspect.getdoc(op.handle):
        operation["description"] = doc
    if parameters:
        operation["parameters"] = parameters
    if op.reads is not None:
        media, schema = (op.reads, {}) if isinstance(op.reads, str) else (JSON, by_kind[op.reads])
        operation["requestBody"] = {"required": True, "content": {media: {"schema": schema} if schema else {}}}
    return operation


def _good(op: Operation, by_kind: Mapping[type, Any]) -> dict[str, Any]:
    if op.gives is None:
        return {"description": op.says}
    if isinstance(op.gives, type):
        return {"description": op.says, "content": {JSON: {"schema": by_kind[op.gives]}}}
    schema = {"schema": _EVENT} if op.gives == EVENT_STREAM else {"schema": {"type": "string"}} if op.gives.startswith("text/") else {}
    return {"description": op.says, "content": {op.gives: schema}}


def _path_parameter(part: str) -> dict[str, Any]:
    return {"name": part.strip("{}"), "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def _query(query: Query) -> dict[str, Any]:
    return {"name": query.name, "in": "query", "description": query.says, "schema": _plain(dict(query.schema))}


def _plain(schema: Any) -> Any:
    """Python's end of a text, in a pattern, as JSON Schema writes it."""
    if isinstance(schema, dict):
        return {key: value.replace(r"\Z", "$") if key == "pattern" else _plain(value) for key, value in schema.items()}
    return [_plain(item) for item in schema] if isinstance(schema, list) else schema
