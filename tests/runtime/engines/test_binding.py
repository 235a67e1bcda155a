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
from quad.runtime.adapters.buffers import zero_buffers
from quad.runtime.engines.binding import Binder
from quad.runtime.engines.bound_session import Arrays, Ready
from quad.runtime.engines.engine import open_engine
from tests.runtime.tiny_unet import RANK, tiny_slots


class _Counting:
    """A session that counts what it is asked to make ready."""

    def __init__(self, session: Any) -> None:
        self._session, self.prepared = session, 0

    def prepare(self, inputs: Arrays) -> Ready:
        self.prepared += 1
        ready: Ready = self._session.prepare(inputs)
        return ready

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


@pytest.fixture
def session(tiny_bundle: Path) -> _Counting:
    return _Counting(open_engine("ort", ("ort",), "w8a16").load(tiny_bundle / "unet/model.onnx", 1))


@pytest.fixture
def binder(session: _Counting) -> Binder:
    return Binder({"unet": session}, {"unet": list(tiny_slots(RANK).input_shapes())})  # type: ignore[dict-item]


@pytest.fixture
def store(tiny_bundle: Path) -> AdapterStore:
    return AdapterStore(open_bundle(tiny_bundle))


def test_a_named_adapter_is_made_ready_once_and_a_mix_each_time(session: _Counting, binder: Binder, store: AdapterStore) -> None:
    for name in ("sketch", "removal", "sketch", "removal"):
        binder.bind(store.buffers(name), name)
    assert session.prepared == 2
    for _ in range(2):
        binder.bind(store.buffers("sketch"))
    assert session.prepared == 4


def test_other_buffers_under_the_same_name_take_its_place(session: _Counting, binder: Binder, store: AdapterStore) -> None:
    step = {name: np.ones([n or 1 for n in shape], np.float32) for name, shape in session.inputs.items() if "lora" not in name}
    outputs = []
    for name in ("sketch", "removal", "sketch"):
        binder.bind(store.buffers(name), "ink")
        outputs.append(session.run(step))
    assert np.abs(outputs[0] - outputs[1]).max() > 0
    np.testing.assert_array_equal(outputs[0], outputs[2])


def test_what_is_forgotten_is_made_ready_again(session: _Counting, binder: Binder, store: AdapterStore) -> None:
    binder.bind(store.buffers("sketch"), "sketch")
    binder.forget("sketch")
    binder.forget("never seen")
    binder.bind(store.buffers("sketch"), "sketch")
    assert session.prepared == 2


def test_a_wrong_buffer_leaves_what_was_bound(session: _Counting, binder: Binder, store: AdapterStore) -> None:
    step = {name: np.ones([n or 1 for n in shape], np.float32) for name, shape in session.inputs.items() if "lora" not in name}
    binder.bind(store.buffers("sketch"), "sketch")
    before = session.run(step)
    wrong = store.buffers("removal") | {"mid.to_q.lora_B": np.zeros((8, 5), np.int16)}
    with pytest.raises(BackendError, match=r"input mid.to_q.lora_B: expected int16 \(8, 4\), found int16 \(8, 5\)"):
        binder.bind(wrong, "removal")
    np.testing.assert_array_equal(session.run(step), before)


def test_slots_of_two_graphs_are_bound_each_to_its_own() -> None:
    """An adapter that reaches the text encoder: the base must clear both."""

    class Recorder:
        bound: dict[str, Any]

        def prepare(self, inputs: Arrays) -> Ready:
            return Ready(weakref.ref(self), inputs, inputs)

        def bind(self, inputs: Ready) -> None:
            self.bound = dict(inputs.of(self).arrays)

    text = Slot(
        path="text_encoder.layers.0.q_proj", kind="linear", in_features=4, out_features=4, rank=2, dtype="int16", component="text_encoder"
    )
    slots = SlotTable((*tiny_slots(RANK).slots, text))
    graphs = {"unet": Recorder(), "text_encoder": Recorder()}
    binder = Binder(graphs, {name: list(slots.of(name).input_shapes()) for name in graphs})  # type: ignore[arg-type]
    zeros = zero_buffers(slots)
    for buffers in ({name: zero + 1 for name, zero in zeros.items()}, zeros):
        binder.bind(buffers)
        for name, graph in graphs.items():
            assert graph.bound.keys() == slots.of(name).input_shapes().keys()
            assert all(array is buffers[key] for key, array in graph.bound.items())


def test_what_was_made_ready_goes_with_its_buffers(session: _Counting, binder: Binder, store: AdapterStore) -> None:
    for name in ("sketch", "removal"):
        binder.bind(store.buffers(name), name)
    alive = [weakref.ref(ready) for _, kept in binder._kept.values() for ready in kept.values()]
    store.drop("sketch")
    store.drop("removal")
    assert [ready() is None for ready in alive] == [True, False], "the one that is bound stays"
    binder.bind(store.zeros, "")
    assert alive[1]() is None
