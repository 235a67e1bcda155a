"""The document: whole, true of every operation, and what a fuzzer that reads it gets for answers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import schemathesis
from benchmarks.fuzz_serve import FuzzResult, fuzz, grown_bytes
from starlette.routing import Route

from quad.serve.app import DOCUMENT_PATH, OPERATIONS, make_app
from quad.serve.limits import Limits
from quad.serve.operations.openapi import document
from tests.serve.conftest import Serve

ROOT = Path(__file__).parents[3]
CASES = 300


def test_the_server_gives_the_document_that_the_command_line_prints(serve: Serve) -> None:
    assert serve().call("GET", DOCUMENT_PATH) == (200, json.loads(json.dumps(document(OPERATIONS))))


def test_it_holds_every_operation_and_every_struct_it_names(serve: Serve) -> None:
    made = document(OPERATIONS)
    app = make_app(serve().service, None)
    routes = {
        (route.path, method) for route in app.routes if isinstance(route, Route) for method in route.methods or () if method != "HEAD"
    }
    assert routes == {(path, method.upper()) for path, item in made["paths"].items() for method in item} | {(DOCUMENT_PATH, "GET")}
    named = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(made)))
    assert named <= made["components"]["schemas"].keys()
    assert r"\Z" not in json.dumps(made)


def test_every_operation_is_in_the_guide() -> None:
    text = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")
    missing = [f"{op.method} {op.path}" for op in OPERATIONS if f"`{op.method} {op.path}`" not in text]
    assert not missing


def test_no_case_breaks_it(serve: Serve, tmp_path: Path) -> None:
    # Half of the cases are right and half are wrong by the document; 10,000 of them: python -m benchmarks.fuzz_serve
    service = serve(real=True, limits=Limits(max_steps=20, max_pixels=2**16, max_body_bytes=2**18), uploads=tmp_path).service
    schema = schemathesis.openapi.from_asgi(DOCUMENT_PATH, make_app(service, None))
    found: FuzzResult = fuzz(schema, lambda case: case.call(), CASES, 0)
    assert found.broken == []
    assert found.cases == CASES
    assert {200, 202, 204, 400, 404, 409} <= found.statuses.keys()


def test_the_fuzzer_tells_growth_from_its_first_look_on() -> None:
    assert grown_bytes({1000: 5, 2000: 90, 3000: 95}) == 5
    assert grown_bytes({500: 5}) == 0
