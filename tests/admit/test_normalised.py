"""Admission to normalised slots: B has no end, `A x` is brought into its range, and it is told which weights were tried."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from safetensors.numpy import load_file

from quad.admit.admit import admit
from quad.admit.request import AdaptRequest, AdaptResult
from quad.core.decibels import EffectEnergy
from quad.core.errors import CompatibilityError
from quad.core.slots import Slot
from quad.core.storage.pack import read_pack
from quad.runtime.adapters.buffers import pad, zero_buffers
from quad.runtime.adapters.weighted_sum import mix_adapters
from quad.runtime.bundle import Bundle, open_bundle
from quad.runtime.engines.engine import open_engine
from quad.runtime.golden_outputs import check_golden, read_probes, unet_buffers
from quad.runtime.pipeline import QuadPipeline
from tests.admit.frozen import freeze, write_later_lora
from tests.runtime.tiny_unet import UNIT


@pytest.fixture(scope="module")
def frozen(normalised_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A normalised bundle with stored calls; not to be written to."""
    return freeze(normalised_bundle, tmp_path_factory.mktemp("frozen") / "phone")


def admitted(frozen: Path, place: Path, factor: float) -> tuple[AdaptResult, dict[str, NDArray[np.floating]]]:
    """A LoRA so loud, as a pack; and its file."""
    file = write_later_lora(place / f"{factor}.safetensors", factor)
    return admit(AdaptRequest(frozen, "ink", file, output=place / "ink.qpack", task="ink", like="transform")), load_file(file)


def product(result: AdaptResult, slot: Slot) -> NDArray[np.float64]:
    """`B diag(s) A` of a pack in real numbers."""
    tensors = read_pack(result.pack).tensors
    a, b = tensors[slot.a_name] / 32767, tensors[slot.b_name] * UNIT / 32767
    return np.asarray((b.reshape(len(b), -1) * tensors[slot.scale_name].astype(np.float64)) @ a.reshape(len(a), -1))


def error(result: AdaptResult, floats: dict[str, NDArray[np.floating]], bundle: Bundle) -> float:
    """Of the products against the file's own, the worst slot's."""
    worst = 0.0
    for slot in bundle.slots.slots:
        a, b = (floats[f"unet.{slot.path}.lora_{side}.weight"].astype(np.float64) for side in "AB")
        true = b.reshape(len(b), -1) @ a.reshape(len(a), -1)
        worst = max(worst, float(np.linalg.norm(product(result, slot) - true) / np.linalg.norm(true)))
    return worst


def test_any_strength_is_the_same_adapter_times_it_and_its_weights_are_told(frozen: Path, tmp_path: Path) -> None:
    bundle = open_bundle(frozen)
    quiet, floats = admitted(frozen, tmp_path, 0.02)
    assert error(quiet, floats, bundle) < 1e-4
    assert quiet.manifest.headroom == 4.0
    assert quiet.trial["weights"] == {"1": {"lost": 0.0, "clipped": 0}, "4": {"lost": 0.0, "clipped": 0}}
    assert "weights up to 4: activations lose at most 0.00% at 1, 0.00% at 4 of their energy" in quiet.checked
    assert {slot.clipped for slot in quiet.slots} == {0.0}
    session = open_engine("ort", (), bundle.manifest.precision).load(bundle.graph("unet"), 1)
    session.bind(unet_buffers(bundle, pad(read_pack(quiet.pack).tensors, zero_buffers(bundle.slots))))
    check_golden(session, bundle, quiet.manifest)
    held = read_pack(quiet.pack).tensors
    louder, _ = admitted(frozen, tmp_path, 0.08)
    for name, array in read_pack(louder.pack).tensors.items():
        if name.endswith("lora_scale"):
            np.testing.assert_allclose(array, 4 * held[name], rtol=1e-5)
        else:
            np.testing.assert_array_equal(array, held[name])


def test_what_clips_activations_is_admitted_for_smaller_weights_and_says_so_when_it_is_used(frozen: Path, tmp_path: Path) -> None:
    """A searched profile refuses these at the slots."""
    headrooms = [admitted(frozen, tmp_path, factor)[0].manifest.headroom for factor in (0.1, 0.3, 0.6)]
    assert headrooms == [4.0, 1.0, 0.5]
    pipe = QuadPipeline.from_pretrained(frozen, threads=1)
    pipe.load_lora_weights(tmp_path / "ink.qpack")
    pipe.set_adapters("ink")
    assert any("'ink' at weight 1: it was tried up to 0.50" in note for note in pipe("a car", task="text-to-image").notes)


def effect(root: Path, wide: float, pack: Path, weight: float) -> NDArray[np.float64]:
    """The change of the U-Net's output on all stored calls by an adapter, in a graph whose activation reaches so many times as far."""
    bundle, graph = open_bundle(root), onnx.load(root / "unet/model.onnx")
    for constant in graph.graph.initializer:
        if constant.name == "as":
            constant.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(constant) * np.float32(wide), "as"))
    session, zeros = ort.InferenceSession(graph.SerializeToString()), zero_buffers(bundle.slots)
    mixed, _ = mix_adapters({"ink": pad(read_pack(pack).tensors, zeros)}, {"ink": weight}, bundle.slots, zeros)
    both = [[session.run(None, {**call, **buffers})[0] for call in read_probes(bundle)] for buffers in (mixed, zeros)]
    return np.subtract(*both).astype(np.float64).ravel()


@pytest.mark.parametrize("factor", [0.02, 0.1, 0.2, 0.3, 0.6])
def test_the_effect_is_right_at_the_weight_that_is_granted_and_not_at_the_next(frozen: Path, tmp_path: Path, factor: float) -> None:
    result, _ = admitted(frozen, tmp_path, factor)
    granted = result.manifest.headroom
    assert isinstance(granted, float)
    energy = EffectEnergy.of(effect(frozen, 64.0, result.pack, granted), effect(frozen, 1.0, result.pack, granted))
    assert energy.gain == pytest.approx(1.0, abs=0.02)
    for weight, use in result.trial["weights"].items():
        right = use["clipped"] == 0 or (abs(use["gain"] - 1.0) <= 0.02 and use["effect_db"] >= 20.0)
        assert right == (float(weight) <= granted)
        assert ("gain" in use) == (use["clipped"] > 0)


def test_what_clips_them_at_half_its_strength_is_refused(frozen: Path, tmp_path: Path) -> None:
    with pytest.raises(
        CompatibilityError, match=r"1 that lose more: mid\.to_q\.in .*; at weight 0\.5 its effect is 0\.\d* of what it"
    ) as refused:
        admitted(frozen, tmp_path, 40.0)
    assert str(refused.value).endswith(" dB; build the bundle again with this adapter")
    assert not (tmp_path / "ink.qpack").exists()


def test_rows_of_a_shrink_until_their_product_fits(normalised_bundle: Path, frozen: Path, tmp_path: Path) -> None:
    narrow = freeze(normalised_bundle, tmp_path / "phone", mid_end=3.0)
    plain, floats = admitted(frozen, tmp_path, 0.1)
    result, _ = admitted(narrow, tmp_path, 0.1)
    assert any(note.startswith("A x left its range in 1 slots, up to ") for note in result.notes)
    assert result.trial["lossy"] == {}
    assert error(result, floats, open_bundle(narrow)) < 2e-4
    assert result.trial["effect"] == pytest.approx(plain.trial["effect"], rel=1e-3)
