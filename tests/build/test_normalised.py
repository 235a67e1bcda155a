"""A bundle with normalised slots, from files to latents: any weight is near float, and 0 is the base bit for bit, in both networks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from quad.build.build import BuildResult, build
from quad.build.request import BuildRequest
from quad.core.decibels import relative_error
from quad.core.errors import UsageError
from quad.core.slots import NORMALISED
from quad.runtime.bundle import open_bundle
from quad.runtime.pipeline import QuadPipeline
from tests.build.text_world import ADAPTERS, text_adapter_files, text_request

__all__ = ["text_adapter_files", "text_request"]  # fixtures


@pytest.fixture(scope="module")
def built(text_request: BuildRequest) -> BuildResult:
    return build(replace(text_request, output=text_request.output.parent / "normalised", slots=NORMALISED, distill_steps=2))


def test_the_bundle_says_so_and_its_files_hold_the_scales(built: BuildResult) -> None:
    bundle = open_bundle(built.bundle)
    assert (bundle.slots.mode, built.to_json()["slots"]) == (NORMALISED, NORMALISED)
    for name in ADAPTERS:
        tensors = load_file(built.bundle / "adapters" / name / "adapter.safetensors")
        paths = [tensor.removesuffix(".lora_A") for tensor in tensors if tensor.endswith(".lora_A")]
        assert len(tensors) == 3 * len(paths) > 0
        for path in paths:
            assert tensors[f"{path}.lora_scale"].shape == (len(tensors[f"{path}.lora_A"]),)
            assert 0 < tensors[f"{path}.lora_scale"].max() <= 1.0001


def test_the_shipped_graphs_are_near_the_float_ones(built: BuildResult) -> None:
    assert max(max(cases.values()) for cases in built.smoke.values()) < 0.05
    assert {"base", *ADAPTERS} == {*built.smoke["unet"]} == {*built.smoke["text_encoder"]}
    assert all(0.98 < alignment.after_rescale.effect_gain < 1.02 for name, alignment in built.alignment.items() if name != "words")


def latent(pipe: QuadPipeline) -> NDArray[np.float32]:
    return np.asarray(pipe("a red tree", task="text-to-image", seed=3, output_type="latent").images[0])


def test_weight_0_is_the_base_and_the_effect_follows_the_weight(built: BuildResult) -> None:
    pipe = QuadPipeline.from_pretrained(built.bundle, threads=1)
    pipe.disable_lora()
    base = latent(pipe)
    for name in ADAPTERS:
        pipe.set_adapters(name, 0.0)
        np.testing.assert_array_equal(latent(pipe), base)
        effects = []
        for weight in (0.03, -0.03):  # so small that the network is nearly straight, above what integers make of the faintest adapter
            pipe.set_adapters(name, weight)
            effects.append(latent(pipe) - base)
        assert relative_error(-effects[1], effects[0]) < 0.5
        pipe.set_adapters(name, 6.0)
        assert np.isfinite(latent(pipe)).all()
    pipe.set_adapters(list(ADAPTERS), [1.0, -0.5, 0.0])
    assert (latent(pipe) != base).any()
    pipe.disable_lora()
    np.testing.assert_array_equal(latent(pipe), base)


def test_what_does_not_go_together_is_refused(text_request: BuildRequest) -> None:
    with pytest.raises(UsageError, match="--slots: expected searched or normalised, found loud"):
        replace(text_request, slots="loud").check()
    with pytest.raises(UsageError, match="--literal-shared-scale: expected --slots searched"):
        replace(text_request, slots=NORMALISED, literal_shared_scale=True).check()
