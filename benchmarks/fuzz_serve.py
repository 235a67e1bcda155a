"""Fuzz a real server by its own OpenAPI document: no answer of 500 or above but 503, none that does not come, memory flat.

    python -m benchmarks.fuzz_serve [BUNDLE] [--cases 10000] [--seed 0] [--json FILE]

Half of the cases fit the document, half do not. Ids that the server gave are used again, so that calls meet requests in every state.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import requests
import schemathesis
from benchmarks.rig.report import command_line, write_report
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode, Response
from schemathesis.core.failures import FailureGroup
from schemathesis.schemas import BaseSchema

from quad.serve.app import OPERATIONS
from quad.serve.operations.openapi import document
from tests.runtime.conftest import make_bundle
from tests.serve.process import ServerProcess

FIRST_LOOK, FLAT_BYTES = 2000, 16 * 2**20
HANG_S = 20.0
CALM_S = 5.0
ADAPTERS = ("transform", "removal", "sketch", "ghost")
OPTIONS = ("--port", "0", "--allow-uploads", "--max-steps", "20", "--max-pixels", "65536", "--max-body", "262144", "--lease", "2")


@dataclass(kw_only=True)
class FuzzResult:
    """The answers to all cases.

    Args:
        rss: cases so far -> resident bytes of the server.
        broken: cases with an answer that the document does not allow, or none at all.
    """

    cases: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    slowest_s: float = 0.0
    rss: dict[int, int] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)


def all_cases(schema: BaseSchema, ids: list[str], draw: random.Random) -> st.SearchStrategy[Case]:
    """Cases of every operation, right and wrong ones alike, over ids that `ids` gathers."""
    operations = [operation.ok() for operation in schema.get_all_operations()]
    modes = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    return st.one_of([op.as_strategy(mode) for op in operations for mode in modes if mode in _modes(op)]).map(
        lambda case: _known(case, ids, draw)
    )


def _modes(operation: Any) -> tuple[GenerationMode, ...]:
    """A call that reads nothing can only be right."""
    wrong = operation.body or operation.query or operation.path_parameters
    return (GenerationMode.POSITIVE, GenerationMode.NEGATIVE) if wrong else (GenerationMode.POSITIVE,)


def _known(case: Case, ids: list[str], draw: random.Random) -> Case:
    """Every other time, something that is there."""
    if "id" in case.path_parameters and ids and draw.random() < 0.5:
        case.path_parameters["id"] = draw.choice(ids[-20:])
    if "name" in case.path_parameters and draw.random() < 0.5:
        case.path_parameters["name"] = draw.choice(ADAPTERS)
    if "wait" in case.query and draw.random() < 0.9:
        case.query["wait"] = 0
    return case


def check(case: Case, response: Response, ids: list[str]) -> None:
    """Raises: schemathesis' failures, the answer is not one that the document promises."""
    case.validate_response(response, checks=[*promised()])
    if response.status_code == 202 and case.path == "/v1/requests":
        ids.append(response.json()["id"])


def promised() -> tuple[Any, ...]:
    """The checks that every answer has to pass."""
    from schemathesis import checks

    return (checks.not_a_server_error, *(checks.CHECKS.get_one(name) for name in
            ("status_code_conformance", "content_type_conformance", "response_schema_conformance", "negative_data_rejection")))  # fmt: skip


def fuzz(
    schema: BaseSchema, send: Callable[[Case], Response], n_cases: int, number: int, after: Callable[[int], None] = lambda _count: None
) -> FuzzResult:
    """Send so many cases; `after` is called with the count after each."""
    answers, ids = FuzzResult(), list[str]()

    @seed(number)
    @settings(max_examples=n_cases, phases=[Phase.generate], deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(all_cases(schema, ids, random.Random(number)))
    def send_case(case: Case) -> None:
        start = perf_counter()
        try:
            response = send(case)
            answers.statuses[response.status_code] += 1
            check(case, response, ids)
        except (Exception, FailureGroup) as error:
            answers.broken.append(f"{case.method} {case.formatted_path}: {type(error).__name__} {error}"[:2000])
        answers.slowest_s = max(answers.slowest_s, perf_counter() - start)
        answers.cases += 1
        after(answers.cases)

    send_case()
    return answers


def run(bundle: Path, n_cases: int, number: int) -> dict[str, Any]:
    """The whole measurement against a server process, as a JSON-like object."""
    with ServerProcess(bundle, *OPTIONS) as server, requests.Session() as session:
        token = Path(server.told["token_file"]).read_text(encoding="ascii").strip()
        session.headers["Authorization"] = f"Bearer {token}"
        rss: dict[int, int] = {}

        def after(count: int) -> None:
            if count % 1000 == 0 or count == n_cases:
                rss[count] = server.resident_bytes()
                print(f"{count} cases, {rss[count] / 1e6:.1f} MB", flush=True)

        start = perf_counter()
        schema = schemathesis.openapi.from_dict(document(OPERATIONS))
        send = partial(Case.call, base_url=server.told["address"], session=session, timeout=HANG_S)
        answers = fuzz(schema, send, n_cases, number, after)
        seconds = perf_counter() - start
        left = _calm(server)
        code, stderr = server.stop()
    facts = {**vars(answers), "statuses": dict(sorted(answers.statuses.items())), "rss": rss, "seconds": seconds}
    return {**facts, "grown_bytes": grown_bytes(rss), "left": left, "exit_code": code, "stderr": stderr[-2000:]}


def grown_bytes(rss: dict[int, int]) -> int:
    """By how much the server grew after the first cases, in which it comes to its size; 0 where there were no more."""
    return rss[max(rss)] - rss[FIRST_LOOK] if FIRST_LOOK in rss else 0


def _calm(server: ServerProcess) -> int:
    """Requests that still wait or run when the lease of all is over."""
    client, until = server.client(), perf_counter() + CALM_S
    while (health := client.health).queued + health.running and perf_counter() < until:
        pass
    return health.queued + health.running


def main() -> int:
    """Print the figures; 1 where something broke."""
    parser = command_line(__doc__)
    parser.add_argument("bundle", nargs="?", type=Path, help="by default one of a few kilobytes is made")
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = options.bundle or make_bundle(Path(folder) / "phone")
        facts = run(bundle, options.cases, options.seed)
    write_report(options.json, facts)
    print(json.dumps(facts, indent=2))
    return 1 if facts["broken"] or facts["left"] or facts["exit_code"] or facts["grown_bytes"] > FLAT_BYTES else 0


if __name__ == "__main__":
    raise SystemExit(main())
