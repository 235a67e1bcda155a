"""Adapters of further kinds: a file is read as the change that the trained network had, of the kind that it was trained as."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from torch import nn

from quad.lora.low_rank import WHOLE
from quad.model.adapters import read_adapter
from quad.zoo.train.base import new_unet
from quad.zoo.train.kinds import KIND_RECIPES, attach, lycoris_names
from quad.zoo.train.text import new_text_encoder

KINDS = {
    "pastel-loha": {"LoHa"},
    "golden-lokr": {"LoKr"},
    "pastel-tucker": {"Tucker", "LoRA"},
    "golden-full": {"full weight difference"},
    "golden-words": {"LoRA"},
    "winter-words": {"LoRA"},
}


@pytest.fixture(scope="module")
def networks() -> tuple[UNet2DConditionModel, nn.Module]:
    torch.manual_seed(0)
    return new_unet((16, 16, 16)).requires_grad_(False), new_text_encoder().requires_grad_(False)


@pytest.mark.parametrize("name", KIND_RECIPES)
def test_the_file_says_what_was_trained(name: str, networks: tuple[UNet2DConditionModel, nn.Module], tmp_path: Path) -> None:
    recipe, (unet, text) = KIND_RECIPES[name], networks
    trained, trained_text = copy.deepcopy(unet), copy.deepcopy(text)
    deltas, words = attach(trained, recipe, recipe.targets), attach(trained_text, recipe, recipe.words)
    untrained = next(iter(deltas))
    assert torch.equal(trained.get_submodule(untrained).weight, unet.get_submodule(untrained).weight)
    for parameter in (p for network in (trained, trained_text) for p in network.parameters() if p.requires_grad):
        parameter.data += 0.1 * torch.randn_like(parameter)
    file = tmp_path / "a.safetensors"
    save_file(lycoris_names("lora_unet", deltas) | lycoris_names("lora_te_text_model", words), file)
    adapter = read_adapter(name, file, unet, text_encoder=text, limits=WHOLE)
    assert {origin.kind for origin in adapter.origins.values()} == KINDS[name]
    assert set(adapter.weights) == {*deltas, *(f"text_encoder.{path}" for path in words)}
    for path, pair in adapter.weights.items():
        whole, own = (trained_text, text) if path.startswith("text_encoder.") else (trained, unet)
        inner = path.removeprefix("text_encoder.")
        change = (whole.get_submodule(inner).weight - own.get_submodule(inner).weight).detach().numpy()
        product = (pair.b.reshape(len(pair.b), -1) @ pair.a.reshape(pair.rank, -1)).reshape(change.shape)
        assert np.linalg.norm(product - change) <= 2e-3 * np.linalg.norm(change)  # fp16
