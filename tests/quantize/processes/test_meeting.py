"""Two processes share work: results and errors everywhere, in one order; a killed one ends the wait; one alone needs no other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import quad
from quad.core.processes import alone, is_main, process_count, process_number, speaks
from quad.core.progress import StageClock, with_progress
from quad.quantize.processes.dealt import dealt, from_each, json_codec, shared
from tests.quantize.processes.two_processes import VALUES

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    directory = tmp_path_factory.mktemp("shared")
    source = Path(next(iter(quad.__path__))).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (source, ROOT))), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "tests.launcher", "2", "tests.quantize.processes.two_processes", str(directory)]
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode in (-9, 9), done.stderr[-4000:]
    return [json.loads((directory / f"{rank}.json").read_text()) for rank in range(2)]


pytestmark = pytest.mark.timeout(120)


def test_results_are_everywhere_and_in_order_whoever_computed_them(facts: list[dict[str, Any]]) -> None:
    for fact in facts:
        assert fact["thirds"] == [value / 3 for value in VALUES]
        assert fact["nothing"] == []
        assert fact["none"]
        assert fact["large"]
        assert fact["each"] == [0, 1]
    drawn = [value for fact in facts for value in fact["drawn"]]
    assert sorted(drawn) == VALUES  # each once
    assert min(len(fact["drawn"]) for fact in facts) > 0


def test_an_error_is_the_same_in_every_process(facts: list[dict[str, Any]]) -> None:
    for fact in facts:
        assert fact["failed"] == fact["shared_failed"] == "InputError: piece 5 is bad"


def test_the_main_process_makes_alone_what_is_shared(facts: list[dict[str, Any]]) -> None:
    assert [(fact["number"], fact["count"], fact["main"]) for fact in facts] == [(0, 2, True), (1, 2, False)]
    for fact in facts:
        assert fact["shared"] == {"count": 1, "number": 0, "by": 0}


def test_a_killed_process_ends_the_wait_of_the_others(facts: list[dict[str, Any]]) -> None:
    assert facts[0]["killed"].startswith("BackendError: process 1: expected a sign of life every 0.5 s, found none for 0.5 s; ")


def test_one_process_alone_computes_everything_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.delenv("RANK", raising=False)
    assert is_main()
    assert shared(lambda: 3, json_codec(int)) == 3
    assert from_each(4, json_codec(int)) == [4]
    assert list(dealt(lambda number: number + 1, (number for number in range(3)), json_codec(int))) == [1, 2, 3]


def test_the_second_process_is_not_the_main_one_unless_it_works_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert (is_main(), process_number(), process_count()) == (False, 1, 2)
    with alone():
        assert (is_main(), process_number(), process_count()) == (True, 0, 1)
        assert not speaks()
    assert not is_main()


def test_progress_within_a_stage_goes_on_and_never_back() -> None:
    heard: list[tuple[str, float]] = []
    clock = StageClock(("first", "second"), lambda name, share: heard.append((name, share)))
    with clock("first"):
        pass
    with clock("second"):
        assert list(with_progress("abc", 3, "letter", clock.within("second"))) == ["a", "b", "c"]
    with clock("first"):
        pass
    assert [name for name, _ in heard] == ["first", "second", "letter 1 of 3", "letter 2 of 3", "letter 3 of 3", "first"]
    shares = [share for _, share in heard]
    assert shares == sorted(shares)
    assert shares[1] == 0.5
    assert max(shares) < 1.0
