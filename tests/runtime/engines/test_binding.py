"""Adapters are made ready once, and never bound from a memory that another adapter has replaced."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quad.core.errors import BackendError
from quad.core.slots import Slot, SlotTable
from quad.runtime import AdapterStore, open_bundle
from quad.runtime.adapters.buffers import AdapterMix, Buffers, zero_buffers
from quad.runtime.engines.engine import Arrays, PreparedInputs, open_engine
from quad.runtime.engines.graph import FairLock, Graph, Slots
from tests.runtime.tiny_unet import RANK, tiny_slots


class _Counting:
    """A session that counts what it is asked to make ready."""

    def __init__(self, session: Any) -> None:
        self._session, self.prepared = session, 0

    def prepare(self, inputs: Arrays) -> PreparedInputs:
        self.prepared += 1
        prepared: PreparedInputs = self._session.prepare(inputs)
        return prepared

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


@pytest.fixture
def session(tiny_bundle: Path) -> _Counting:
    return _Counting(open_engine("ort", ("ort",), "w8a16").load(tiny_bundle / "unet/model.onnx", 1))


def _loaded(session: Any, component: str, slots: SlotTable) -> Graph:
    graph = Graph(lambda: session, Slots(component, slots.of(component).input_shapes()), resident=True, budget=FairLock())
    with graph.loaded():
        return graph


@pytest.fixture
def graph(session: _Counting) -> Graph:
    return _loaded(session, "unet", tiny_slots(RANK))


def _mix(buffers: Any) -> AdapterMix:
    return AdapterMix(weights={}, buffers=buffers)


@pytest.fixture
def store(tiny_bundle: Path) -> AdapterStore:
    return AdapterStore(open_bundle(tiny_bundle))


def test_a_named_adapter_is_made_ready_once_and_a_mix_each_time(session: _Counting, graph: Graph, store: AdapterStore) -> None:
    for name in ("sketch", "removal", "sketch", "removal"):
        graph.bind(_mix(store.buffers(name)))
    assert session.prepared == 2
    for _ in range(2):
        graph.bind(_mix(Buffers(store.buffers("sketch"))))  # new buffers, as a mix is
    assert session.prepared == 4


def test_other_buffers_under_the_same_name_take_its_place(session: _Counting, graph: Graph, store: AdapterStore) -> None:
    step = {name: np.ones([n or 1 for n in shape], np.float32) for name, shape in session.inputs.items() if "lora" not in name}
    outputs = []
    for name in ("sketch", "removal", "sketch"):
        graph.bind(_mix(store.buffers(name)))
        outputs.append(session.run(step))
    assert np.abs(outputs[0] - outputs[1]).max() > 0
    np.testing.assert_array_equal(outputs[0], outputs[2])


def test_what_is_forgotten_is_made_ready_again(session: _Counting, graph: Graph, store: AdapterStore) -> None:
    graph.bind(_mix(store.buffers("sketch")))
    store.unregister("sketch")
    graph.bind(_mix(store.buffers("sketch")))
    assert session.prepared == 2


def test_a_wrong_buffer_leaves_what_was_bound(session: _Counting, graph: Graph, store: AdapterStore) -> None:
    step = {name: np.ones([n or 1 for n in shape], np.float32) for name, shape in session.inputs.items() if "lora" not in name}
    graph.bind(_mix(store.buffers("sketch")))
    before = session.run(step)
    wrong = Buffers(store.buffers("removal") | {"mid.to_q.lora_B": np.zeros((8, 5), np.int16)})
    with pytest.raises(BackendError, match=r"input mid.to_q.lora_B: expected int16 \(8, 4\), found int16 \(8, 5\)"):
        graph.bind(_mix(wrong))
    np.testing.assert_array_equal(session.run(step), before)


def test_slots_of_two_graphs_are_bound_each_to_its_own() -> None:
    """An adapter that reaches the text encoder: the base must clear both."""

    class Recorder:
        bound: dict[str, Any]

        def __init__(self, inputs: dict[str, tuple[int, ...]]) -> None:
            self.inputs = inputs

        def prepare(self, inputs: Arrays) -> PreparedInputs:
            return PreparedInputs(owner=weakref.ref(self), arrays=inputs, values=inputs)

        def bind(self, inputs: PreparedInputs) -> None:
            assert inputs.owner() is self
            self.bound = dict(inputs.arrays)

    text = Slot(
        path="text_encoder.layers.0.q_proj", kind="linear", in_features=4, out_features=4, rank=2, dtype="int16", component="text_encoder"
    )
    slots = SlotTable((*tiny_slots(RANK).slots, text))
    sessions = {name: Recorder(slots.of(name).input_shapes()) for name in ("unet", "text_encoder")}
    graphs = [_loaded(session, name, slots) for name, session in sessions.items()]
    zeros = zero_buffers(slots)
    for buffers in (Buffers({name: zero + 1 for name, zero in zeros.items()}), zeros):
        for graph in graphs:
            graph.bind(_mix(buffers))
        for name, session in sessions.items():
            assert session.bound.keys() == slots.of(name).input_shapes().keys()
            assert all(array is buffers[key] for key, array in session.bound.items())


def test_what_was_made_ready_goes_with_its_buffers(session: _Counting, graph: Graph, store: AdapterStore) -> None:
    for name in ("sketch", "removal"):
        graph.bind(_mix(store.buffers(name)))
    alive = [weakref.ref(prepared) for name in ("sketch", "removal") for prepared in store.buffers(name).prepared.values()]
    store.unregister("sketch")
    store.unregister("removal")
    assert [ready() is None for ready in alive] == [True, False], "the one that is bound stays"
    graph.bind(_mix(store.zeros))
    assert alive[1]() is None
