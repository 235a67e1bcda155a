"""What every engine must keep: one contract class, inherited once per engine."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from quad.core.errors import BackendError, UsageError
from quad.runtime import AdapterStore, open_bundle
from quad.runtime.engine import ENGINES, Session, default_threads, open_engine


class EngineContract:
    """Laws of `Engine` and `Session`; a subclass names the engine."""

    engine: str
    precision = "w8a16"

    @pytest.fixture
    def store(self, tiny_bundle: Path) -> AdapterStore:
        return AdapterStore(open_bundle(tiny_bundle))

    @pytest.fixture
    def session(self, tiny_bundle: Path) -> Session:
        return open_engine(self.engine, (), self.precision).load(tiny_bundle / "unet/model.onnx", 1)

    @pytest.fixture
    def step(self) -> dict[str, NDArray[np.float32]]:
        rng = np.random.default_rng(1)
        shapes = {"sample": (1, 9, 4, 4), "timestep": (1,), "encoder_hidden_states": (1, 6, 8)}
        return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}

    def test_knows_its_inputs_in_order(self, session: Session, store: AdapterStore) -> None:
        names = list(session.inputs)
        assert names[:3] == ["sample", "timestep", "encoder_hidden_states"]
        assert names[3:] == list(store.zeros)
        assert session.inputs["sample"] == (1, 9, 4, 4)

    def test_a_b_a_bit_for_bit(self, session: Session, store: AdapterStore, step: dict[str, NDArray[np.float32]]) -> None:
        outputs = []
        for buffers in (store.zeros, store.buffers("transform"), store.buffers("sketch"), store.buffers("transform"), store.zeros):
            session.bind(buffers)
            outputs.append(session.run(step))
        base, a, b, again, unloaded = outputs
        np.testing.assert_array_equal(a, again, strict=True)
        np.testing.assert_array_equal(base, unloaded, strict=True)
        assert np.abs(a - base).max() > 1e-3 < np.abs(a - b).max()

    def test_every_slot_input_matters(self, session: Session, store: AdapterStore, step: dict[str, NDArray[np.float32]]) -> None:
        full = store.buffers("sketch")
        session.bind(full)
        before = session.run(step)
        for name in full:
            session.bind({name: store.zeros[name]})
            assert np.abs(session.run(step) - before).max() > 0
            session.bind({name: full[name]})

    def test_bound_arrays_outlive_their_owner(self, session: Session, store: AdapterStore, step: dict[str, NDArray[np.float32]]) -> None:
        session.bind({name: array.copy() for name, array in store.buffers("sketch").items()})
        before = session.run(step)
        _ = [np.ones((4, 9, 3, 3), np.int16) for _ in range(200)]
        np.testing.assert_array_equal(session.run(step), before)

    def test_outputs_are_not_shared(self, session: Session, store: AdapterStore, step: dict[str, NDArray[np.float32]]) -> None:
        session.bind(store.zeros)
        first = session.run(step)
        kept = first.copy()
        session.run(step | {"sample": -step["sample"]})
        np.testing.assert_array_equal(first, kept)

    def test_what_does_not_fit_is_said(self, session: Session, store: AdapterStore, step: dict[str, NDArray[np.float32]]) -> None:
        with pytest.raises(BackendError, match=r"none for conv_in.lora_A"):
            session.run(step)
        session.bind(store.zeros)
        for wrong in ({"nothing": step["timestep"]}, {"sample": step["sample"][:, :4]}, {"sample": step["sample"].astype(np.float64)}):
            with pytest.raises(BackendError, match="graph unet, input"):
                session.run(step | wrong)
        with pytest.raises(BackendError, match="none for timestep"):
            session.run({name: step[name] for name in ("sample", "encoder_hidden_states")})

    def test_a_file_that_is_no_graph(self, tmp_path: Path) -> None:
        (tmp_path / "model.onnx").write_bytes(b"no graph")
        with pytest.raises(BackendError, match="cannot load"):
            open_engine(self.engine, (), self.precision).load(tmp_path / "model.onnx", 1)


class TestOrt(EngineContract):
    engine = "ort"


class TestOrtInteger(EngineContract):
    engine = "ort"
    precision = "mixed:80"


def test_float_activations_stay_float(tiny_bundle: Path) -> None:
    """An int8 weight must not turn its float activations into int8, which ONNX Runtime does by itself."""
    rng = np.random.default_rng(1)
    shapes = {"sample": (1, 9, 4, 4), "timestep": (1,), "encoder_hidden_states": (1, 6, 8)}
    step = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    outputs = []
    for precision in ("w8a16", "w8a8"):
        session = open_engine("ort", (), precision).load(tiny_bundle / "unet/model.onnx", 1)
        session.bind(AdapterStore(open_bundle(tiny_bundle)).zeros)
        outputs.append(session.run(step))
    assert np.abs(outputs[0] - outputs[1]).max() < 1e-4


def test_auto_takes_the_first_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_engine("auto", ("nowhere", "ort"), "w8a16").name == "ort"
    with pytest.raises(UsageError, match="auto or one of ort, found 'tpu'"):
        open_engine("tpu", ("ort",), "w8a16")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, ENGINES["ort"], raising=False)
    with pytest.raises(BackendError, match="expected the package onnxruntime, found none; install it: pip install onnxruntime"):
        open_engine("auto", ("ort",), "w8a16")


def test_threads_are_at_least_one() -> None:
    assert default_threads() >= 1
