"""Normalised slots on the torch networks: weight 0 is the base, any weight is that of diffusers with PEFT, in U-Net and text encoder."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from quad.core.errors import CompatibilityError
from quad.core.slots import NORMALISED
from quad.lora.adapter import FloatAdapter
from quad.lora.fit.integers import balanced_inputs
from quad.lora.fit.slot_inputs import slot_inputs
from quad.model.adapters import read_adapter
from quad.model.slots.network import slot_network, slot_networks
from tests.model.conftest import Inputs, random_lora
from tests.model.slots.test_network_text import IDS, pairs

WEIGHTS = (0.7, 3.0, -1.5)


def bound(inputs: dict[str, np.ndarray], weight: float) -> dict[str, Tensor]:
    return {name: torch.from_numpy(values) * (weight if name.endswith(".lora_scales") else 1) for name, values in inputs.items()}


@pytest.fixture(scope="module")
def text() -> CLIPTextModel:
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=12, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=8,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    return CLIPTextModel(config).eval().requires_grad_(False)


@pytest.mark.parametrize("kind", ["feed-forward", "convolutions"])
def test_a_weight_in_the_scales_is_the_weight_of_diffusers(
    kind: str, unet: UNet2DConditionModel, lora_file: Callable[..., Path], inputs: Inputs
) -> None:
    path = lora_file(kind, (4, 7), 5)
    adapter = read_adapter(kind, path, unet)
    network, table = slot_network(unet, [adapter], 9, NORMALISED)
    reference = copy.deepcopy(unet)
    reference.load_lora_adapter(path.parent, weight_name=path.name, prefix="unet", adapter_name=kind)
    floats = balanced_inputs(adapter, table)
    with torch.no_grad():
        base = network(*inputs, {})
        for weight in WEIGHTS:
            reference.set_adapters(kind, weight)
            want = reference(*inputs).sample
            assert (want - base).abs().max() > 0.01 * want.square().mean().sqrt()
            error = (network(*inputs, bound(floats, weight)) - want).abs().max()
            assert error <= 1e-4 * want.square().mean().sqrt()
        # Law 1: no scale, or no adapter, is the base bit for bit.
        assert torch.equal(network(*inputs, bound(floats, 0.0)), base)
        assert torch.equal(network(*inputs, bound(slot_inputs(None, table), 1.0)), base)


def test_one_network_takes_adapters_of_other_ranks(unet: UNet2DConditionModel, lora_file: Callable[..., Path], inputs: Inputs) -> None:
    """Float ones: an admission measures a larger adapter than a bundle's slots hold."""
    small, large = (read_adapter(name, lora_file("convolutions", ranks, 5), unet) for name, ranks in (("s", (4, 7)), ("l", (9, 11))))
    network, _ = slot_network(unet, [small], None, NORMALISED)
    other, table = slot_network(unet, [large], None, NORMALISED)
    given = bound(balanced_inputs(large, table), 1.0)
    with torch.no_grad():
        assert torch.equal(network(*inputs, given), other(*inputs, given))


def test_padding_changes_nothing(unet: UNet2DConditionModel, lora_file: Callable[..., Path], inputs: Inputs) -> None:
    adapter = read_adapter("a", lora_file("convolutions", (4, 7), 5), unet)
    outputs = []
    for rank in (None, 20):
        network, table = slot_network(unet, [adapter], rank, NORMALISED)
        with torch.no_grad():
            outputs.append(network(*inputs, bound(balanced_inputs(adapter, table), 1.0)))
    assert (outputs[1] - outputs[0]).abs().max() <= 1e-5 * outputs[0].square().mean().sqrt()


def test_each_network_reads_its_own_scales(unet: UNet2DConditionModel, text: CLIPTextModel, inputs: Inputs) -> None:
    tensors = random_lora(text, ("q_proj", "fc2"), (4, 2), 1)
    weights = {**pairs(tensors, "text_encoder."), **pairs(random_lora(unet, ("to_q",), (4,), 2))}
    adapter = FloatAdapter(name="both", weights=weights, rank=4, digest="both")
    slotted = slot_networks(unet, text, [adapter], mode=NORMALISED)
    floats = balanced_inputs(adapter, slotted.table)
    assert [name for name in floats if name.endswith("lora_scales")] == ["unet.lora_scales", "text_encoder.lora_scales"]
    reference = copy.deepcopy(text)
    state = {f"text_encoder.{name}": tensor for name, tensor in tensors.items()}
    StableDiffusionLoraLoaderMixin.load_lora_into_text_encoder(state, None, reference, prefix="text_encoder", adapter_name="words")
    assert slotted.text_encoder is not None
    with torch.no_grad():
        for weight in WEIGHTS:
            reference.set_adapter("words")
            for module in reference.modules():
                if hasattr(module, "set_scale"):
                    module.set_scale("words", weight)
            want = reference(input_ids=IDS).last_hidden_state
            assert (slotted.text_encoder(IDS, slots=bound(floats, weight)) - want).abs().max() <= 1e-5 * want.abs().max()
        # The U-Net has what is its own, whatever stands beside it.
        own = {name: tensor for name, tensor in bound(floats, 1.0).items() if not name.startswith("text_encoder.")}
        assert torch.equal(slotted.unet(*inputs, bound(floats, 1.0)), slotted.unet(*inputs, own))


def test_a_missing_vector_of_scales_is_refused(unet: UNet2DConditionModel, lora_file: Callable[..., Path], inputs: Inputs) -> None:
    adapter = read_adapter("a", lora_file(), unet)
    network, table = slot_network(unet, [adapter], mode=NORMALISED)
    inputs_of = bound(balanced_inputs(adapter, table), 1.0)
    inputs_of.pop("unet.lora_scales")
    with pytest.raises(CompatibilityError, match=r"no 'unet.lora_scales'"):
        network(*inputs, inputs_of)
