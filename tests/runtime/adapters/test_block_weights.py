"""Weights by block are those of diffusers' `set_adapters`, and each slot is summed with its own."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import peft
import pytest
import torch
from diffusers.loaders.unet_loader_utils import _maybe_expand_lora_scales
from diffusers.utils.peft_utils import set_weights_and_activate_adapters

from quad.core.errors import UsageError
from quad.runtime import QuadPipeline
from quad.runtime.adapters.block_weights import BlockWeights, adapter_weights, read_weight, weight_at

SCALES: list[Any] = [
    0.5,
    {"down": 0.25},
    {"mid": 0.0, "up": 2},
    {"down": 0.5, "mid": 1.5, "up": {"block_1": 0.75, "block_0": [0.1, 0.2]}},
    {"up": {"block_1": [0.3, -0.4]}},
]


@pytest.fixture(scope="module")
def unet() -> Any:
    torch.manual_seed(0)
    network = diffusers.UNet2DConditionModel(
        sample_size=4, in_channels=4, out_channels=4, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=8, attention_head_dim=2,
    )  # fmt: skip
    network.add_adapter(peft.LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v"]), "ink")
    return network


@pytest.mark.parametrize("scale", SCALES)
def test_each_slot_has_the_weight_that_diffusers_gives_it(unet: Any, scale: Any) -> None:
    expanded = _maybe_expand_lora_scales(unet, [scale]) if isinstance(scale, dict) else [scale]
    set_weights_and_activate_adapters(unet, ["ink"], expanded)
    weight = read_weight({"unet": scale})
    layers = {path: layer for path, layer in unet.named_modules() if isinstance(layer, peft.tuners.lora.LoraLayer)}
    assert len(layers) > 10
    assert {path: weight_at(weight, path) for path in layers} == {path: layer.scaling["ink"] for path, layer in layers.items()}


def test_the_text_encoder_has_a_weight_of_its_own() -> None:
    for value, of_unet, of_text in (
        ({"text_encoder": 0.3}, 1.0, 0.3),
        ({"unet": 0.5}, 0.5, 1.0),
        ({"unet": {"down": 0.5}, "text_encoder": 0}, 0.5, 0.0),
        (0.7, 0.7, 0.7),
    ):
        weight = read_weight(value)
        assert weight_at(weight, "down_blocks.0.attentions.0.to_q") == of_unet
        assert weight_at(weight, "text_encoder.layers.0.q_proj") == of_text


def test_a_block_that_is_not_there_is_told() -> None:
    weight = read_weight(
        {"unet": {"down": {"block_0": 0.5, "block_9": 0.2}, "mid": 0.3, "up": {"block_7": [0.1, 0.2]}}, "text_encoder": 0.8}
    )
    assert isinstance(weight, BlockWeights)
    assert weight.unmatched(["down_blocks.0.attentions.0.to_q", "down_blocks.1.to_q"]) == ["down_blocks.9.", "mid_block.", "up_blocks.7."]
    assert read_weight({"unet": 0.5}).unmatched([]) == []  # type: ignore[union-attr]


def test_a_call_tells_it(tiny_bundle: Any) -> None:
    pipe = QuadPipeline.from_pretrained(tiny_bundle, threads=1)
    pipe.set_adapters("transform", {"unet": {"up": {"block_9": 0.1}}})
    assert any("up_blocks.9, where this bundle takes no adapter" in note for note in pipe("the car", task="text-to-image").notes)


def test_only_an_adapter_with_nothing_left_is_unused() -> None:
    assert not read_weight({"unet": 0, "text_encoder": 0})
    assert read_weight({"unet": 0})
    assert read_weight({"unet": {"down": 0, "mid": 0, "up": 0}})  # what lies between the blocks


@pytest.mark.parametrize(
    "value",
    [
        "much",
        {"vae": 1},
        {"unet": {"left": 1}},
        {"unet": {"up": {"block": 1}}},
        {"unet": {"up": {"block_0": ["a"]}}},
        {"text_encoder": {}},
        True,
    ],
)
def test_what_is_no_weight(value: Any) -> None:
    with pytest.raises(UsageError, match=r"^adapter weights: expected numbers, as in [^\n]*; mend the call$"):
        read_weight(value)


def test_one_for_all_or_one_each() -> None:
    by_block = {"unet": {"down": 0.5}}
    assert adapter_weights(["a", "b"], by_block) == dict.fromkeys(("a", "b"), BlockWeights((("down_blocks.", 0.5),)))
    assert adapter_weights(["a", "b"], [by_block, np.float32(0.5)])["b"] == 0.5
    with pytest.raises(UsageError, match="one finite weight each"):
        adapter_weights(["a", "b"], [by_block])


def test_each_slot_is_summed_with_its_own(tiny_bundle: Any) -> None:
    pipe = QuadPipeline.from_pretrained(tiny_bundle)
    slots = {slot.path: slot for slot in pipe.bundle.slots.slots}
    first, *others = slots
    store = pipe.switch.store
    weight = BlockWeights(((f"{first}.", 0.5),))
    mixed, notes = store.mix(["sketch"], [weight])
    half, _ = store.mix(["sketch"], [0.5])
    whole, _ = store.mix(["sketch"], [1.0])
    assert notes == ()
    np.testing.assert_array_equal(mixed[slots[first].b_name], half[slots[first].b_name])
    for path in others:
        np.testing.assert_array_equal(mixed[slots[path].b_name], whole[slots[path].b_name])
    pipe.set_adapters("sketch", adapter_weights={"unet": {"down": 0.5}})
    made = pipe("the car", task="text-to-image")
    assert made.adapters == {"sketch": BlockWeights((("down_blocks.", 0.5),))}
