"""Admission to bundles and of adapters that are not the common kind: float, without slots, of the text encoder alone, of zeros."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import quad.admit.admit as admission
from quad.admit.request import AdaptRequest, AdaptResult
from quad.align import align
from quad.align.adapt import adapt
from quad.build.build import BuildRequest, build
from quad.core.decibels import sqnr_db
from quad.core.errors import CompatibilityError, UsageError
from quad.core.padding import slot_scales
from quad.core.slots import SlotTable
from quad.core.storage.pack import read_pack
from quad.lora.fit.integers import dequantize_adapter
from quad.lora.fit.slot_inputs import slot_inputs
from quad.model.adapters import read_adapter
from quad.model.base.open import Base
from quad.quantize.distill.teacher_calls import Fidelity
from quad.runtime.adapters.buffers import pad, zero_buffers
from quad.runtime.bundle import open_bundle
from tests.build.samples import SAMPLES
from tests.small_model import write_lora

ENDINGS = ("attn1.to_q", "conv_in", "attn2.to_v")
WORDS = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
HIDDEN = 16


def words(place: Path, seed: int, factor: float) -> Path:
    """A LoRA of the text encoder alone."""
    generator = torch.Generator().manual_seed(seed)
    save_file({f"{WORDS}.lora_{side}.weight": torch.randn(shape, generator=generator) * factor
               for side, shape in (("A", (2, HIDDEN)), ("B", (HIDDEN, 2)))}, place)  # fmt: skip
    return place


@pytest.fixture(scope="module")
def files(adapter_files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The two adapters, one of them with a part in the text encoder."""
    place = tmp_path_factory.mktemp("files")
    both = {**load_file(adapter_files["transform"]), **load_file(words(place / "words.safetensors", 3, 0.3))}
    save_file(both, place / "transform.safetensors")
    return {**adapter_files, "transform": place / "transform.safetensors"}


@pytest.fixture(scope="module")
def phone(model_dir: Path, files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("frozen") / "phone"
    build(BuildRequest(model_dir, files, place, samples=SAMPLES, precision="w8a16", distill_steps=0))
    return place


@pytest.fixture(scope="module")
def exact(model_dir: Path, adapter_files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that quantizes nothing."""
    place = tmp_path_factory.mktemp("exact") / "phone"
    build(BuildRequest(model_dir, adapter_files, place, samples=SAMPLES, precision="float"))
    return place


def lora(base: Base, place: Path, rank: int, factor: float = 0.3) -> Path:
    write_lora(place, base.unet, rank, ENDINGS, 7)
    held = load_file(place)
    save_file({name: tensor * (factor if "lora_B" in name else 1.0) for name, tensor in held.items()}, place)
    return place


def test_a_float_bundle_asks_for_energy_too(exact: Path, base: Base, tmp_path: Path) -> None:
    wide = AdaptRequest(
        exact, "ink", lora(base, tmp_path / "wide.safetensors", 8), output=tmp_path / "ink.qpack", task="ink", like="transform"
    )
    with pytest.raises(CompatibilityError, match=r"all 9 of its slots .*at rank 2, 0\.9 is asked for.*--min-energy"):
        adapt(wide)
    admitted = adapt(replace(wide, min_energy=0.1))
    assert admitted.manifest.quality is not msgspec.UNSET
    assert 0.1 < float(admitted.manifest.quality.energy) < 0.9
    assert not isinstance(admitted.manifest.quality.product_db, float)


def test_words_alone_are_admitted_with_the_base_and_without(phone: Path, model_dir: Path, tmp_path: Path) -> None:
    asked = AdaptRequest(
        phone, "ink", words(tmp_path / "words.safetensors", 5, 0.2), output=tmp_path / "ink.qpack", task="ink", like="transform"
    )
    alone, based = adapt(asked), adapt(replace(asked, base=model_dir, samples=SAMPLES))
    for admitted in (alone, based):
        assert any("text encoder" in line for line in admitted.unchecked)
    quality = based.to_json()["quality"]
    assert quality["output_db"] > 20
    assert "effect_db" not in quality
    assert any(line.startswith("output against") for line in based.checked)


def test_zeros_are_no_adapter(phone: Path, exact: Path, base: Base, tmp_path: Path) -> None:
    silent = words(tmp_path / "silent.safetensors", 5, 0.0)
    nothing = lora(base, tmp_path / "nothing.safetensors", 2, 0.0)
    for bundle, file in ((phone, silent), (phone, nothing), (exact, nothing)):
        with pytest.raises(CompatibilityError, match="an update of the network, found zeros alone"):
            adapt(AdaptRequest(bundle, "ink", file, output=tmp_path / "ink.qpack"))


def test_a_bundle_without_slots_says_so(exact: Path, base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "open_bundle", lambda root: replace(open_bundle(root), slots=SlotTable(())))
    with pytest.raises(CompatibilityError, match="expected slots for adapters, found none; build it with one adapter"):
        adapt(AdaptRequest(exact, "ink", lora(base, tmp_path / "ink.safetensors", 2), output=tmp_path / "ink.qpack"))


def test_the_lora_itself_is_not_written_over(phone: Path, base: Base, tmp_path: Path) -> None:
    file = lora(base, tmp_path / "ink.safetensors", 2)
    before = file.read_bytes()
    with pytest.raises(UsageError, match="another file than the LoRA itself"):
        adapt(AdaptRequest(phone, "ink", file, output=tmp_path / "there" / ".." / "ink.safetensors"))
    assert file.read_bytes() == before


def with_base(phone: Path, base: Base, model_dir: Path, place: Path, steps: int) -> AdaptResult:
    asked = AdaptRequest(phone, "ink", lora(base, place / "ink.safetensors", 2), output=place / "ink.qpack", task="ink", like="transform")
    return adapt(replace(asked, base=model_dir, samples=SAMPLES, distill_steps=steps))


def test_a_packs_product_is_that_of_its_own_integers(
    phone: Path, base: Base, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = with_base(phone, base, model_dir, tmp_path, 0).to_json()["quality"]["product_db"]
    bundle, adapter = open_bundle(phone), read_adapter("ink", tmp_path / "ink.safetensors", base.unet)
    meant = slot_inputs(adapter, bundle.slots)
    found = dequantize_adapter(pad(read_pack(tmp_path / "ink.qpack").tensors, zero_buffers(bundle.slots)), bundle.slots, bundle.profile)

    def products(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        flat = {name: np.asarray(array, np.float64).reshape(len(array), -1) for name, array in inputs.items()}
        scales = slot_scales(inputs, bundle.slots)
        return [flat[slot.b_name] * scales[slot.path] @ flat[slot.a_name] for slot in bundle.slots.slots]

    pairs = list(zip(products(meant), products(found), strict=True))
    assert said == pytest.approx(sqnr_db(sum((a**2).sum() for a, _ in pairs), sum(((a - b) ** 2).sum() for a, b in pairs)), abs=0.1)
    # Trained, the product is another one on purpose: its distance from the file's is no quality, and is not said to be that of before.
    # Whether training helps so small a network is another question: here it is said to.
    measured = align.measure_fidelity

    def praised(*given: Any) -> list[Fidelity]:
        return [replace(fidelity, output_db=fidelity.output_db + 10 * index) for index, fidelity in enumerate(measured(*given))]

    monkeypatch.setattr(align, "measure_fidelity", praised)
    trained = with_base(phone, base, model_dir, tmp_path, 10)
    assert trained.alignment["steps"] == 10
    assert not any(note.startswith("training") for note in trained.notes)
    assert "product_db" not in trained.to_json()["quality"]


def test_training_that_brings_the_graph_nothing_is_not_packed(
    phone: Path, base: Base, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_base(phone, base, model_dir, tmp_path, 0)
    rescaled = read_pack(tmp_path / "ink.qpack").tensors
    measured = align.measure_fidelity

    def doubted(*given: Any) -> list[Fidelity]:
        return [replace(one, output_db=one.output_db - 10 * index) for index, one in enumerate(measured(*given))]

    monkeypatch.setattr(align, "measure_fidelity", doubted)
    kept = with_base(phone, base, model_dir, tmp_path, 10)
    assert any(note.startswith("training took the graph's output from") for note in kept.notes)
    assert "product_db" in kept.to_json()["quality"]
    found = read_pack(tmp_path / "ink.qpack").tensors
    assert found.keys() == rescaled.keys()
    for name, array in rescaled.items():
        np.testing.assert_array_equal(found[name], array, name)
