"""What every engine must keep: one contract class, inherited once per engine."""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from quad.core.errors import BackendError
from quad.runtime import AdapterStore, open_bundle
from quad.runtime.engines.engine import SwitchSession, default_threads, open_engine
from quad.runtime.engines.float_types import in_bf16
from tests.runtime.tiny_htp import save_htp_unet
from tests.runtime.tiny_litert import save_litert_unet
from tests.runtime.tiny_unet import RANK, float_unet, save_unet

Step = dict[str, NDArray[np.float32]]


def step_inputs() -> Step:
    rng = np.random.default_rng(1)
    shapes = {"sample": (1, 9, 4, 4), "timestep": (1,), "encoder_hidden_states": (1, 6, 8)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def decibels(found: NDArray[np.floating], expected: NDArray[np.floating]) -> float:
    """SQNR."""
    noise = np.square(found - expected, dtype=np.float64).mean()
    return float(10 * np.log10(np.square(expected, dtype=np.float64).mean() / max(noise, 1e-30)))


class EngineContract:
    """Laws of `Engine` and `SwitchSession`; a subclass names the engine, and loads graphs its own way where it must.

    `parity_db` bounds the noise against the float network, which is one 16-bit activation's; `order_db` what another order of
    float additions may change.
    """

    engine: str
    precision = "w8a16"
    parity_db = 75.0
    order_db = 110.0
    graph = "model.onnx"

    def load(self, model_file: Path, threads: int = 1) -> SwitchSession:
        return open_engine(self.engine, (self.engine,), self.precision).load(model_file, threads)

    def save(self, model_file: Path, rank: int) -> None:
        """The U-Net with slots of this rank, as the engine reads it."""
        save_unet(model_file, rank)

    @pytest.fixture
    def phone(self, tiny_bundle: Path) -> Path:
        """A bundle that the engine reads."""
        return tiny_bundle

    @pytest.fixture
    def store(self, phone: Path) -> AdapterStore:
        return AdapterStore(open_bundle(phone))

    @pytest.fixture
    def session(self, phone: Path) -> SwitchSession:
        return self.load(phone / "unet" / self.graph)

    @pytest.fixture
    def step(self) -> Step:
        return step_inputs()

    def test_knows_its_inputs_in_order(self, session: SwitchSession, store: AdapterStore) -> None:
        names = list(session.inputs)
        assert names[:3] == ["sample", "timestep", "encoder_hidden_states"]
        assert names[3:] == list(store.zeros)
        assert session.inputs["sample"] == (1, 9, 4, 4)

    def test_a_b_a_bit_for_bit(self, session: SwitchSession, store: AdapterStore, step: Step) -> None:
        outputs = []
        for buffers in (store.zeros, store.buffers("transform"), store.buffers("sketch"), store.buffers("transform"), store.zeros):
            session.bind(buffers)
            outputs.append(session.run(step))
        base, a, b, again, unloaded = outputs
        np.testing.assert_array_equal(a, again, strict=True)
        np.testing.assert_array_equal(base, unloaded, strict=True)
        assert np.abs(a - base).max() > 1e-3 < np.abs(a - b).max()

    def test_zero_adapter_is_the_base_bit_for_bit(self, session: SwitchSession, store: AdapterStore, step: Step, tmp_path: Path) -> None:
        self.save(tmp_path / "unet" / self.graph, 0)
        base = self.load(tmp_path / "unet" / self.graph)
        assert list(base.inputs) == list(step)
        session.bind(store.zeros)
        np.testing.assert_array_equal(session.run(step), base.run(step), strict=True)

    def test_padding_a_rank_changes_nothing(self, session: SwitchSession, store: AdapterStore, step: Step, tmp_path: Path) -> None:
        padded, rank = store.buffers("transform"), 2
        own = {name: array[:rank] if name.endswith("lora_A") else array[:, :rank] for name, array in padded.items()}
        assert sum(map(np.count_nonzero, own.values())) == sum(map(np.count_nonzero, padded.values()))
        self.save(tmp_path / "unet" / self.graph, rank)
        thin = self.load(tmp_path / "unet" / self.graph)
        session.bind(padded)
        thin.bind(own)
        assert rank < RANK
        assert decibels(session.run(step), thin.run(step)) > self.order_db

    def test_parity_to_the_float_network(self, session: SwitchSession, store: AdapterStore, step: Step) -> None:
        effects = []
        for buffers in (store.zeros, store.buffers("removal"), store.buffers("sketch")):
            session.bind(buffers)
            found, expected = session.run(step), float_unet(step, buffers)
            assert decibels(found, expected) > self.parity_db
            effects.append((found, expected))
        for found, expected in effects[1:]:
            assert decibels(found - effects[0][0], expected - effects[0][1]) > self.parity_db - 10

    def test_threads_are_honoured_and_change_nothing(self, phone: Path, store: AdapterStore, step: Step) -> None:
        outputs = []
        for threads in (1, 2):
            session = self.load(phone / "unet" / self.graph, threads)
            assert min(session.threads, default_threads()) == min(threads, default_threads())
            session.bind(store.buffers("sketch"))
            outputs.append(session.run(step))
        assert decibels(*outputs) > self.order_db

    def test_what_was_made_ready_is_bound_again(self, session: SwitchSession, phone: Path, store: AdapterStore, step: Step) -> None:
        outputs, ready = [], [session.prepare(store.buffers(name)) for name in ("transform", "sketch")]
        for inputs in (store.buffers("transform"), *ready, ready[0]):
            session.bind(inputs)
            outputs.append(session.run(step))
        np.testing.assert_array_equal(outputs[0], outputs[1])
        np.testing.assert_array_equal(outputs[1], outputs[3])
        assert np.abs(outputs[1] - outputs[2]).max() > 1e-3
        with pytest.raises(BackendError, match="made ready by this session, found another session's"):
            self.load(phone / "unet" / self.graph).bind(ready[0])

    def test_a_part_that_was_changed_is_put_back(self, session: SwitchSession, store: AdapterStore, step: Step) -> None:
        """Sets of inputs are chosen, not written anew: what was changed in one must not be found in it again."""
        a, b = (session.prepare(store.buffers(name)) for name in ("transform", "sketch"))
        session.lay_out(b)
        session.bind(a)
        before = session.run(step)
        name = next(iter(store.zeros))
        updated = a.updated(session.prepare({name: b.arrays[name]}))
        for changed in ({name: b.arrays[name]}, updated):
            session.bind(changed)
            assert np.abs(session.run(step) - before).max() > 0
            for inputs in (b, a):
                session.bind(inputs)
            np.testing.assert_array_equal(session.run(step), before)
        session.bind({name: b.arrays[name]})
        session.bind(updated)
        expected = session.run(step)
        session.bind(b)
        session.bind(updated)
        np.testing.assert_array_equal(session.run(step), expected)

    def test_what_was_laid_out_goes_with_its_inputs(self, session: SwitchSession, store: AdapterStore) -> None:
        prepared = [session.prepare(store.buffers(name)) for name in ("transform", "sketch")]
        for inputs in prepared:
            session.lay_out(inputs)
            session.bind(inputs)
        gone = weakref.ref(prepared.pop(0))
        gc.collect()
        assert gone() is None

    def test_arrays_are_bound_by_address(self, session: SwitchSession, store: AdapterStore) -> None:
        buffers = store.buffers("sketch")
        locked = {name: array.copy() for name, array in buffers.items()}
        for array in locked.values():
            array.flags.writeable = False
        for given in (buffers, locked):
            ready = session.prepare(given)
            assert all(ready.arrays[name] is given[name] for name in given)
            assert {name: self.address(value) for name, value in ready.values.items()} == {n: a.ctypes.data for n, a in given.items()}

    def address(self, value: object) -> int:
        """Where the engine's tensor has its numbers."""
        raise NotImplementedError

    def test_an_input_given_to_one_run_is_gone_in_the_next(self, session: SwitchSession, store: AdapterStore, step: Step) -> None:
        full = store.buffers("sketch")
        session.bind(full)
        before = session.run(step)
        name = next(iter(full))
        assert np.abs(session.run({**step, name: store.zeros[name]}) - before).max() > 0
        np.testing.assert_array_equal(session.run(step), before)

    def test_nothing_is_written(self, phone: Path, store: AdapterStore, step: Step) -> None:
        def found() -> Iterator[tuple[str, float]]:
            for folder, _, files in os.walk(phone):
                yield from ((f"{folder}/{name}", os.stat(f"{folder}/{name}").st_mtime) for name in (*files, "."))

        before = dict(found())
        session = self.load(phone / "unet" / self.graph)
        session.bind(store.zeros)
        session.run(step)
        assert dict(found()) == before

    def test_every_slot_input_matters(self, session: SwitchSession, store: AdapterStore, step: Step) -> None:
        full = store.buffers("sketch")
        session.bind(full)
        before = session.run(step)
        for name in full:
            session.bind({name: store.zeros[name]})
            assert np.abs(session.run(step) - before).max() > 0
            session.bind({name: full[name]})

    def test_bound_arrays_outlive_their_owner(self, session: SwitchSession, store: AdapterStore, step: Step) -> None:
        session.bind({name: array.copy() for name, array in store.buffers("sketch").items()})
        before = session.run(step)
        _ = [np.ones((4, 9, 3, 3), np.int16) for _ in range(200)]
        np.testing.assert_array_equal(session.run(step), before)

    def test_outputs_are_not_shared(self, session: SwitchSession, store: AdapterStore, step: Step) -> None:
        session.bind(store.zeros)
        first = session.run(step)
        kept = first.copy()
        session.run(step | {"sample": -step["sample"]})
        np.testing.assert_array_equal(first, kept)

    def test_what_does_not_fit_is_said(self, session: SwitchSession, store: AdapterStore, step: Step) -> None:
        with pytest.raises(BackendError, match=r"none for conv_in.lora_A"):
            session.run(step)
        session.bind(store.zeros)
        for wrong in ({"nothing": step["timestep"]}, {"sample": step["sample"][:, :4]}, {"sample": step["sample"].astype(np.float64)}):
            with pytest.raises(BackendError, match="graph unet, input"):
                session.run(step | wrong)
        with pytest.raises(BackendError, match="none for timestep"):
            session.run({name: step[name] for name in ("sample", "encoder_hidden_states")})

    def test_a_file_that_is_no_graph(self, tmp_path: Path) -> None:
        (tmp_path / self.graph).write_bytes(b"no graph")
        with pytest.raises(BackendError, match="cannot load"):
            self.load(tmp_path / self.graph)


class TestOrt(EngineContract):
    engine = "ort"

    def address(self, value: object) -> int:
        return int(value.data_ptr())  # type: ignore[attr-defined]


class TestOrtInteger(TestOrt):
    precision = "mixed:80"


class TestQnn(EngineContract):
    """On x86 its emulator. Branches of slots are the coarsest there, 36 to 47 dB against the CPU; the base is 60 dB from float."""

    engine = "qnn"
    parity_db = 40.0

    def save(self, model_file: Path, rank: int) -> None:
        save_htp_unet(model_file, rank)

    @pytest.fixture
    def phone(self, htp_bundle: Path) -> Path:
        return htp_bundle

    def address(self, value: object) -> int:
        return int(value.data_ptr())  # type: ignore[attr-defined]

    def test_a_file_that_is_no_graph(self, tmp_path: Path) -> None:
        pytest.importorskip("onnxruntime_qnn")
        (tmp_path / "ports.json").write_text('{"inputs": {}, "outputs": {}}')
        super().test_a_file_that_is_no_graph(tmp_path)


class TestLiteRt(EngineContract):
    """Its graph takes and gives 16-bit integers: the noise of three such sites."""

    engine = "litert"
    graph = "model.tflite"
    parity_db = 70.0

    def save(self, model_file: Path, rank: int) -> None:
        save_litert_unet(model_file, rank)

    @pytest.fixture
    def phone(self, litert_bundle: Path) -> Path:
        return litert_bundle

    def address(self, value: object) -> int:
        """Of the caller's array: the library copies from there whenever it is bound."""
        return int(value.ctypes.data)  # type: ignore[attr-defined]

    def test_a_file_that_is_no_graph(self, tmp_path: Path) -> None:
        pytest.importorskip("ai_edge_litert")
        (tmp_path / "ports.json").write_text('{"inputs": {}, "outputs": {}}')
        super().test_a_file_that_is_no_graph(tmp_path)


class TestOpenVino(EngineContract):
    engine = "openvino"

    def address(self, value: object) -> int:
        return int(value.data.ctypes.data)  # type: ignore[attr-defined]


class TestOpenVinoInBf16(TestOpenVino):
    """Coarser, and every law else holds: no trace of another adapter, to the bit."""

    parity_db = order_db = 30.0

    def load(self, model_file: Path, threads: int = 1) -> SwitchSession:
        engine = in_bf16(open_engine(self.engine, (self.engine,), self.precision))
        if engine is None:
            pytest.skip("this processor has no bf16")
        return engine.load(model_file, threads)

    def test_zero_adapter_is_the_base_bit_for_bit(self, session: SwitchSession, store: AdapterStore, step: Step, tmp_path: Path) -> None:
        """Another graph is rounded in other places: as near as the type is."""
        self.save(tmp_path / "unet" / self.graph, 0)
        session.bind(store.zeros)
        assert decibels(session.run(step), self.load(tmp_path / "unet" / self.graph).run(step)) > self.order_db


def test_float_activations_stay_float(tiny_bundle: Path) -> None:
    """An int8 weight must not turn its float activations into int8, which ONNX Runtime does by itself."""
    outputs = []
    for precision in ("w8a16", "w8a8"):
        session = open_engine("ort", ("ort",), precision).load(tiny_bundle / "unet/model.onnx", 1)
        session.bind(AdapterStore(open_bundle(tiny_bundle)).zeros)
        outputs.append(session.run(step_inputs()))
    assert np.abs(outputs[0] - outputs[1]).max() < 1e-4
