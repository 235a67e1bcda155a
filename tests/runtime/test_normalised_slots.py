"""A bundle of normalised slots, from its files to both engines' outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from quad.core.errors import CompatibilityError, VerificationError
from quad.core.storage.pack import write_pack
from quad.runtime import AdapterStore, QuadPipeline, open_bundle
from quad.runtime.adapters.block_weights import read_weight
from quad.runtime.adapters.buffers import BESIDE_BYTES, Buffers, padded_bytes
from quad.runtime.engines.engine import Arrays, SwitchSession, open_engine
from quad.runtime.engines.graph import bind_buffers
from tests.conftest import Spy
from tests.runtime.conftest import NORMALISED_SLOTS, adapter_manifest, adapter_tensors, normalised_manifest, normalised_tensors
from tests.runtime.tiny_unet import HIDDEN, LENGTH, SIDE, float_unet, real_slots


@pytest.fixture
def store(normalised_bundle: Path) -> AdapterStore:
    return AdapterStore(open_bundle(normalised_bundle))


@pytest.fixture(params=["ort", "openvino"])
def session(request: pytest.FixtureRequest, normalised_bundle: Path) -> SwitchSession:
    pytest.importorskip("onnxruntime" if request.param == "ort" else "openvino")
    bundle = open_bundle(normalised_bundle)
    return open_engine(request.param, (), bundle.manifest.precision).load(bundle.graph("unet"), 1)


@pytest.fixture
def step() -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(5)
    shapes = {"sample": (1, 9, SIDE, SIDE), "encoder_hidden_states": (1, LENGTH, HIDDEN)}
    call = {name: rng.standard_normal(shape).astype(np.float32) * np.float32(0.3) for name, shape in shapes.items()}
    return call | {"timestep": np.array([300.0], np.float32)}


def _run(session: SwitchSession, buffers: Buffers, step: Arrays) -> NDArray[Any]:
    bind_buffers(session, buffers, NORMALISED_SLOTS.input_shapes())
    return session.run(step)


def test_outputs_are_those_of_the_float_formula_at_every_weight_and_for_sums(
    store: AdapterStore, session: SwitchSession, step: dict[str, NDArray[np.float32]]
) -> None:
    real = {name: real_slots(store.buffers(name) | store.buffers(name).scales, NORMALISED_SLOTS) for name in ("transform", "removal")}
    for weights in ({"transform": 1.0}, {"transform": 0.5}, {"removal": -4.0}, {"transform": 0.7, "removal": -1.5}):
        mixed, notes = store.mix([*weights], [*weights.values()])
        assert notes == ()
        both = {
            key: np.concatenate([real[name][key] * (weight if axis else 1.0) for name, weight in weights.items()], axis)
            for key in real["transform"]
            for axis in [int(key.endswith("B"))]
        }
        expected = float_unet(step, both)
        assert np.abs(_run(session, mixed, step) - expected).max() < 2e-3 * np.abs(expected).max()


def test_an_adapter_comes_back_bit_for_bit_and_so_does_the_base(
    store: AdapterStore, session: SwitchSession, step: dict[str, NDArray[np.float32]]
) -> None:
    base = _run(session, store.zeros, step)
    np.testing.assert_allclose(base, float_unet(step, {}), atol=2e-3 * float(np.abs(base).max()))
    first = _run(session, store.buffers("transform"), step)
    assert (first != base).any()
    for names, weights in ((["sketch"], [1.0]), (["transform"], [2.0]), (["removal", "transform"], [0.5, -1.0])):
        assert (_run(session, store.mix(names, weights)[0], step) != first).any()
        np.testing.assert_array_equal(_run(session, store.buffers("transform"), step), first)
        np.testing.assert_array_equal(_run(session, store.mix(["transform"], [0.0])[0], step), base)


def test_another_weight_wraps_the_scales_alone(store: AdapterStore, session: SwitchSession, spy: Spy) -> None:
    wrapped = spy(type(session), "prepare", lambda _session, inputs: sorted(inputs))
    half, _ = store.mix(["sketch"], [0.5])
    bind_buffers(session, half, NORMALISED_SLOTS.input_shapes())
    assert wrapped == [["unet.lora_scales"], sorted(NORMALISED_SLOTS.input_shapes())]
    bind_buffers(session, store.mix(["sketch"], [0.25])[0], NORMALISED_SLOTS.input_shapes())
    bind_buffers(session, store.buffers("sketch"), NORMALISED_SLOTS.input_shapes())
    bind_buffers(session, half, NORMALISED_SLOTS.input_shapes())
    assert wrapped[2:] == [["unet.lora_scales"]]


def test_a_weight_takes_the_memory_of_its_scales_and_holds_the_adapter(normalised_bundle: Path) -> None:
    store = AdapterStore(open_bundle(normalised_bundle), budget_bytes=0)
    one = padded_bytes(store.zeros, store.zeros)
    half, _ = store.mix(["sketch"], [0.5])
    vector = half["unet.lora_scales"].nbytes + BESIDE_BYTES
    assert store.size_bytes() == one + vector
    store.buffers("removal")
    assert store.size_bytes() == 2 * one + vector, "the weighted one is in use, and so is what it shares"
    del half
    assert store.size_bytes() == one


def test_weights_over_those_that_admission_tried_are_told(store: AdapterStore, tmp_path: Path) -> None:
    manifest = msgspec.structs.replace(normalised_manifest("ink", 2), headroom=2.0)
    write_pack(tmp_path / "ink.qpack", manifest, normalised_tensors(9, 2))
    write_pack(tmp_path / "pen.qpack", msgspec.structs.replace(manifest, name="pen", headroom=0.5), normalised_tensors(8, 2))
    for name in ("ink", "pen"):
        store.register(tmp_path / f"{name}.qpack")
    assert store.mix(["ink", "removal"], [-2.0, 50.0])[1] == ()
    told = "adapters: 'ink' at weight -2.5: it was tried up to 2.00, beyond it activations of the network may be cut off"
    assert store.mix(["ink"], [-2.5])[1] == (told,)
    assert [note.split("'")[1] for note in store.mix(["pen"], [1.0])[1]] == ["pen"]
    by_block = read_weight({"unet": {"mid": 3.0}})
    assert store.mix(["ink"], [by_block])[1] == (
        "adapters: 'ink' has a weight for mid_block, where this bundle takes no adapter: it changes nothing",
    )


def test_a_file_of_the_slots_rank_is_mapped(store: AdapterStore) -> None:
    sketch = store.buffers("sketch")
    assert not any(sketch[slot.a_name].flags.writeable or sketch[slot.a_name].flags.owndata for slot in NORMALISED_SLOTS.slots)


def test_pictures_follow_the_weight_and_packs_of_both_kinds_stay_apart(normalised_bundle: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    def pixels(**options: Any) -> Any:
        return np.asarray(pipe("the car", task="text-to-image", **options).images[0])

    write_pack(tmp_path / "ink.qpack", normalised_manifest("ink", 2), normalised_tensors(9, 2))
    write_pack(tmp_path / "old.qpack", adapter_manifest("old", 2), adapter_tensors(9, 2))
    pipe = QuadPipeline.from_pretrained(normalised_bundle, threads=1)
    base = pixels()
    pipe.load_lora_weights(tmp_path / "ink.qpack")
    pipe.set_adapters("ink", 3.0)
    loud = pixels()
    pipe.set_adapters("ink", 0.0)
    np.testing.assert_array_equal(pixels(), base)
    pipe.set_adapters("ink", 3.0)
    np.testing.assert_array_equal(pixels(), loud)
    assert (loud != base).any()
    refused = "adapter 'old' was packed for slots .{8}, bundle 'phone' has .{8}: run quad adapt phone old=old.safetensors$"
    with pytest.raises(CompatibilityError, match=refused):
        pipe.load_lora_weights(tmp_path / "old.qpack")
    with pytest.raises(CompatibilityError, match=refused.replace("old", "ink")):
        QuadPipeline.from_pretrained(tiny_bundle, threads=1).load_lora_weights(tmp_path / "ink.qpack")


def test_a_pack_that_lies_about_its_slots_is_refused(store: AdapterStore, tmp_path: Path) -> None:
    bare = {name: array for name, array in normalised_tensors(9, 2).items() if not name.endswith("scale")}
    write_pack(tmp_path / "ink.qpack", normalised_manifest("ink", 2), bare)
    with pytest.raises(
        VerificationError, match=r"expected A, B and scales, or none of them, found conv_in.lora_A and conv_in.lora_B alone"
    ):
        store.register(tmp_path / "ink.qpack")
