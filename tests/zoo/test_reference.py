"""Adapters that are shipped beside the model: each is read whole, in the names of its own writer, and fits slots of its own ranks."""

from __future__ import annotations

import functools

import pytest
from diffusers import UNet2DConditionModel

from quad.core.sampling import AdapterDefaults
from quad.lora.file import defaults_of, open_lora
from quad.lora.keys import dialect_of
from quad.model.adapters import read_adapter
from quad.zoo.reference import later_adapters, reference_adapters, reference_dir, shipped_adapter
from quad.zoo.samples import LATER

LARGEST = 2 * 2**20
EVERYWHERE = ("to_q", "conv1", "conv2", "conv_shortcut", "downsamplers", "time_emb_proj", "time_embedding.linear_2")


@functools.cache
def _unet() -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(reference_dir() / "unet").requires_grad_(False)


def test_the_later_ones_are_no_adapters_of_the_model() -> None:
    assert set(later_adapters()) == {*LATER, "speed"}
    assert not set(later_adapters()) & set(reference_adapters())
    assert shipped_adapter("removal") == reference_adapters()["removal"]


@pytest.mark.parametrize(
    ("name", "kind", "dialect"),
    [("speed", "LoRA", "diffusers"), ("golden", "LoRA", "kohya"), ("winter", "LoRA with DoRA", "diffusers")],
)
def test_each_is_read_whole(name: str, kind: str, dialect: str) -> None:
    file = shipped_adapter(name)
    lora = open_lora(file)
    adapter = read_adapter(name, file, _unet())
    assert file.stat().st_size < LARGEST
    assert {dialect_of(key) for key in lora.tensors} == {dialect}
    assert {origin.kind for origin in adapter.origins.values()} == {kind}
    assert sum(origin.tensors for origin in adapter.origins.values()) == len(lora.tensors)
    assert all(share >= 0.99 for share in adapter.energy.values())
    assert all(pair.power > 0 for pair in adapter.weights.values())


@pytest.mark.parametrize("name", ["speed", "golden"])
def test_convolutions_and_the_time_embedding_are_reached(name: str) -> None:
    paths = set(read_adapter(name, shipped_adapter(name), _unet()).weights)
    assert all(any(part in path for path in paths) for part in EVERYWHERE)


def test_the_speed_lora_says_how_it_is_run() -> None:
    assert defaults_of(shipped_adapter("speed")) == AdapterDefaults(sampler="lcm:4", guidance=1.0)
