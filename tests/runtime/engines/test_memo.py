"""A question that was answered is not asked again; one that differs in any number is."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quad.runtime import AdapterStore, open_bundle
from quad.runtime.engines.engine import open_engine
from quad.runtime.engines.memo import MemoEngine
from quad.runtime.engines.ort import OrtEngine, OrtSession
from tests.conftest import Spy
from tests.runtime.engines.test_engine import step_inputs

STEP = step_inputs()


@pytest.fixture
def graph(tiny_bundle: Path) -> Path:
    return tiny_bundle / "unet/model.onnx"


@pytest.fixture
def store(tiny_bundle: Path) -> AdapterStore:
    return AdapterStore(open_bundle(tiny_bundle))


@pytest.fixture
def runs(spy: Spy) -> list[Any]:
    return spy(OrtSession, "_execute")


def engine(kept: tuple[Path, ...] = ()) -> MemoEngine:
    return MemoEngine(open_engine("ort", (), "w8a16"), kept)


def test_equal_numbers_are_one_question_whatever_holds_them(graph: Path, store: AdapterStore, runs: list[Any]) -> None:
    memo = engine()
    buffers = store.buffers("transform")
    first, second = memo.load(graph, 1), memo.load(graph, 1)
    first.bind(buffers)
    second.bind({name: array.copy() for name, array in buffers.items()})
    answer = first.run(STEP)
    np.testing.assert_array_equal(second.run({name: array.copy() for name, array in STEP.items()}), answer, strict=True)
    assert len(runs) == 1


def questions(graph: Path, store: AdapterStore, memo: MemoEngine) -> Iterator[np.ndarray]:
    """Of which no two are one: each differs from the first in an adapter, a bound number, a number of the call, or the graph."""
    session, base = memo.load(graph, 1), store.zeros
    for buffers in (base, store.buffers("transform")):
        session.bind(buffers)
        yield session.run(STEP)
    session.bind(base)
    name = next(name for name, array in base.items() if array.dtype == np.int16)
    session.bind({name: np.ones_like(base[name])})
    yield session.run(STEP)
    session.bind(base)
    yield session.run({**STEP, "timestep": STEP["timestep"] + np.float32(1)})
    lean = memo.load(graph, 1, True)
    lean.bind(base)
    yield lean.run(STEP)


def test_other_numbers_are_another_question(graph: Path, store: AdapterStore, runs: list[Any]) -> None:
    memo = engine()
    answers = list(questions(graph, store, memo))
    assert len(runs) == len(answers) == len(list(questions(graph, store, memo)))
    for answer, again in zip(answers, questions(graph, store, engine()), strict=True):
        np.testing.assert_array_equal(answer, again, strict=True)


def test_an_answer_belongs_to_who_asked(graph: Path, store: AdapterStore) -> None:
    session = engine().load(graph, 1)
    session.bind(store.zeros)
    first = session.run(STEP)
    first[:] = 0
    assert session.run(STEP).any()


def test_a_graph_is_loaded_once_as_long_as_it_is_there(graph: Path, spy: Spy) -> None:
    loads = spy(OrtEngine, "load")
    memo = engine()
    first = memo.load(graph, 1)
    second = memo.load(graph, 1)
    assert len(loads) == 1
    del first, second
    memo.load(graph, 1)
    memo.load(graph, 1)
    assert len(loads) == 3
    kept = engine((graph,))
    assert kept.keeps(graph)
    kept.load(graph, 1)
    kept.load(graph, 1)
    assert len(loads) == 4


def test_sessions_of_one_graph_run_at_the_same_time_with_inputs_of_their_own(graph: Path, store: AdapterStore) -> None:
    def answers(memo: MemoEngine, name: str) -> list[np.ndarray]:
        session = memo.load(graph, 1)
        session.bind(store.buffers(name))
        return [session.run({**STEP, "timestep": np.array([number], np.float32)}) for number in range(20)]

    memo, names = engine((graph,)), ("transform", "removal", "sketch")
    with ThreadPoolExecutor(len(names)) as pool:
        together = list(pool.map(lambda name: answers(memo, name), names))
    for found, name in zip(together, names, strict=True):
        np.testing.assert_array_equal(found, answers(engine(), name), strict=True)
