"""A merged bundle: its numbers against float arithmetic in NumPy, its tasks, where it comes from, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.numpy import save_file

from quad.core.component_call import UNET_INPUTS
from quad.core.decibels import array_sqnr_db
from quad.core.errors import CompatibilityError, InputError, QuadError, UnsupportedError, UsageError
from quad.core.manifest import BundleManifest, SamplerSpec, TaskSpec
from quad.core.sampling import AdapterDefaults
from quad.export.bake.bake import bake
from quad.export.bake.manifest import merged_tasks
from quad.export.bake.request import BakeRequest, BakeResult
from quad.runtime.bundle import open_bundle
from quad.runtime.pipeline import QuadPipeline
from tests.runtime.conftest import adapter_manifest, adapter_tensors
from tests.runtime.tiny_unet import HIDDEN, LATTICE, LENGTH, SIDE, float_unet

WEIGHTS = {"transform": 0.75, "sketch": -0.5}


def _call(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    shapes = {"sample": (1, 9, SIDE, SIDE), "timestep": (1,), "encoder_hidden_states": (1, LENGTH, HIDDEN)}
    return {name: rng.standard_normal(shapes[name]).astype(np.float32) for name in UNET_INPUTS}


@pytest.fixture
def with_probes(bundle_copy: Path, rewrite: Callable[..., None]) -> Path:
    """The tiny bundle with two stored calls."""
    save_file({f"{index}/{name}": array for index in range(2) for name, array in _call(index).items()}, bundle_copy / "probes.safetensors")
    rewrite(bundle_copy)
    return bundle_copy


@pytest.fixture
def merged(with_probes: Path, tmp_path: Path) -> BakeResult:
    return bake(BakeRequest(bundle=with_probes, adapters=WEIGHTS, output=tmp_path / "baked", weight_bits=16))


def _weighted(call: dict[str, Any]) -> np.ndarray:
    """The sum of both in float arithmetic: rank channels side by side, as no slot of this rank could hold them."""
    parts = [adapter_tensors(0, 2), adapter_tensors(2, 4)]
    slots = {}
    for name in parts[0]:
        is_up = name.endswith("lora_B")
        step = LATTICE.scale[0]
        weighted = [step * part[name] * (weight if is_up else 1) for part, weight in zip(parts, WEIGHTS.values(), strict=True)]
        slots[name] = np.concatenate(weighted, axis=1 if is_up else 0)
    return float_unet(call, slots)


def test_the_graph_computes_the_weighted_sum(merged: BakeResult) -> None:
    pipe = QuadPipeline.from_pretrained(merged.bundle)
    call = _call(9)
    assert pipe.graph("unet").inputs.keys() == call.keys()
    assert array_sqnr_db(_weighted(call), pipe.graph("unet").run(call)) > 60
    assert (merged.layers, merged.worst <= 1 + 1e-5) == (2, True)


def test_it_is_compared_with_the_graph_with_slots(with_probes: Path, merged: BakeResult, tmp_path: Path) -> None:
    assert merged.likeness == {}  # ranks 2 and 4 in slots of 4
    assert any("exceed a slot's" in line for line in merged.notes)
    request = BakeRequest(bundle=with_probes, adapters={"sketch": 0.75}, output=tmp_path / "alone", weight_bits=16)
    likeness = bake(request).likeness["unet"]
    assert likeness.calls == 2
    assert likeness.output_db > 60
    assert likeness.effect_gain == pytest.approx(1.0, abs=1e-3)


def test_it_is_an_ordinary_bundle_of_its_base_s_tasks_and_its_adapters(with_probes: Path, merged: BakeResult) -> None:
    bundle, source = open_bundle(merged.bundle), open_bundle(with_probes)
    manifest = bundle.manifest
    assert (manifest.adapters, bundle.slots.slots) == ((), ())
    assert sorted(manifest.tasks) == ["sketch", "text-to-image", "transform"]
    assert merged.left_out == ("removal",)
    assert all(task.adapter is None for task in manifest.tasks.values())
    assert manifest.tasks["sketch"].guidance == source.manifest.tasks["sketch"].guidance == 2.0
    assert manifest.parents["bundle"] == source.manifest.sha256
    assert manifest.parents["base"] == source.manifest.parents["base"]
    assert isinstance(manifest.merged, tuple)
    assert {adapter.name: adapter.weight for adapter in manifest.merged} == WEIGHTS
    assert not any("lora" in name for encodings in bundle.profile.encodings.values() for name in encodings)
    picture = QuadPipeline.from_pretrained(merged.bundle)("the car", task="text-to-image", seed=1)
    assert len(picture.images) == 1


def test_the_same_adapters_give_the_same_bytes(with_probes: Path, merged: BakeResult, tmp_path: Path) -> None:
    again = bake(BakeRequest(bundle=with_probes, adapters=WEIGHTS, output=tmp_path / "again", weight_bits=16))
    assert again.manifest == merged.manifest


def test_without_stored_calls_nothing_is_compared_and_a_note_says_so(tiny_bundle: Path, tmp_path: Path) -> None:
    merged = bake(BakeRequest(bundle=tiny_bundle, adapters={"sketch": 1.0}, output=tmp_path / "baked"))
    assert merged.likeness == {}
    assert any("not compared" in line for line in merged.notes)


SPEC = TaskSpec(adapter=None, sampler=SamplerSpec(kind="euler", steps=20), condition="none", mask="ones", guidance=7.5)


def test_tasks_take_the_sampler_and_guidance_that_an_adapter_brings() -> None:
    said = {"fast": AdapterDefaults(sampler="lcm:4", guidance=1.0), "ink": AdapterDefaults(trigger_words="ink drawing")}
    tasks = {"text-to-image": SPEC, "sketch": msgspec.structs.replace(SPEC, adapter="other")}
    merged = merged_tasks(tasks, {"ink": 0.5, "fast": 1.0}, said, {})
    (spec,) = merged.tasks.values()
    assert (spec.sampler.kind, spec.sampler.steps, spec.guidance) == ("lcm", 4, 1.0)
    assert merged.left_out == ("sketch",)


def test_a_prompt_without_the_trigger_words_of_a_merged_adapter_is_told(
    bundle_copy: Path, rewrite: Callable[..., None], tmp_path: Path
) -> None:
    bake(BakeRequest(bundle=bundle_copy, adapters={"sketch": 1.0}, output=tmp_path / "baked"))
    manifest = msgspec.json.decode((tmp_path / "baked/bundle.json").read_bytes(), type=BundleManifest)
    assert isinstance(manifest.merged, tuple)
    listens = msgspec.structs.replace(manifest.merged[0], defaults=AdapterDefaults(trigger_words="night"))
    rewrite(tmp_path / "baked", **{**msgspec.structs.asdict(manifest), "merged": (listens,)})
    pipe = QuadPipeline.from_pretrained(tmp_path / "baked")
    assert any("night" in line for line in pipe("the car", task="text-to-image").notes)
    assert not any("listens" in line for line in pipe("the car by night", task="text-to-image").notes)


@pytest.mark.parametrize(
    ("adapters", "kind", "words"),
    [
        ({}, UsageError, "an adapter to merge"),
        ({"sketch": 0.0}, UsageError, "weights of 0 alone"),
        ({"sketch": float("nan")}, UsageError, "finite"),
        ({"nobody": 1.0}, UsageError, "expected one of transform"),
    ],
)
def test_what_cannot_be_merged_is_refused(
    tiny_bundle: Path, tmp_path: Path, adapters: dict[str, float], kind: type[QuadError], words: str
) -> None:
    with pytest.raises(kind, match=words):
        bake(BakeRequest(bundle=tiny_bundle, adapters=adapters, output=tmp_path / "baked"))
    assert not list(tmp_path.glob("baked*"))


def test_a_bundle_that_has_no_slots_any_more_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    bake(BakeRequest(bundle=tiny_bundle, adapters={"sketch": 1.0}, output=tmp_path / "baked"))
    with pytest.raises(CompatibilityError, match="merged already"):
        bake(BakeRequest(bundle=tmp_path / "baked", adapters={"sketch": 1.0}, output=tmp_path / "twice"))


def test_binaries_of_a_chip_are_refused_with_the_way(bundle_copy: Path, rewrite: Callable[..., None], tmp_path: Path) -> None:
    rewrite(bundle_copy, target="qnn-htp")
    with pytest.raises(UnsupportedError, match="merge the LoRA into the model's own weights"):
        bake(BakeRequest(bundle=bundle_copy, adapters={"sketch": 1.0}, output=tmp_path / "baked"))


def test_an_adapter_of_zeros_and_a_place_in_the_bundle_are_refused(bundle_copy: Path, tmp_path: Path) -> None:
    from quad.core.storage.pack import write_pack

    zeros = {name: np.zeros_like(array) for name, array in adapter_tensors(0, 2).items()}
    write_pack(tmp_path / "zeros.qpack", adapter_manifest("zeros", 2), zeros)
    with pytest.raises(InputError, match="other than zero"):
        bake(BakeRequest(bundle=bundle_copy, adapters={str(tmp_path / "zeros.qpack"): 1.0}, output=tmp_path / "baked"))
    with pytest.raises(UsageError, match="outside of the bundle"):
        bake(BakeRequest(bundle=bundle_copy, adapters={"sketch": 1.0}, output=bundle_copy / "inside"))
