"""Adapters merged into weights: beside PEFT where it can, the kind's definition where it cannot, and the base bit for bit afterwards."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor

from quad.evaluate.figures.merged_adapters import MergedAdapters
from quad.evaluate.figures.peft_adapters import PeftAdapters
from quad.zoo.train.base import new_unet

LAYER = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
KOHYA = "lora_unet_" + LAYER.replace(".", "_")


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return new_unet((16, 16, 16))


def noisy(*shape: int, seed: int) -> Tensor:
    return 0.3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def save(path: Path, tensors: dict[str, Tensor]) -> Path:
    save_file({f"{KOHYA}.{name}": value for name, value in tensors.items()}, path)
    return path


def lora(path: Path, width: int) -> Path:
    pair = {"lora_down.weight": noisy(3, width, seed=1), "lora_up.weight": noisy(width, 3, seed=2), "alpha": torch.tensor(2.0)}
    return save(path, pair)


def test_a_lora_is_what_peft_makes_of_it(unet: UNet2DConditionModel, tmp_path: Path) -> None:
    file = lora(tmp_path / "ink.safetensors", unet.get_submodule(LAYER).in_features)
    merged, loaded = copy.deepcopy(unet), copy.deepcopy(unet)
    MergedAdapters(merged, torch.nn.Identity(), {"ink": file}).use("ink")
    PeftAdapters(loaded, torch.nn.Identity(), {"ink": file}).use("ink")
    expected = loaded.get_submodule(LAYER).get_base_layer().weight + loaded.get_submodule(LAYER).get_delta_weight("adapter_0")
    torch.testing.assert_close(merged.get_submodule(LAYER).weight, expected, rtol=1e-5, atol=1e-6)


def test_nothing_of_a_difference_is_cut_and_the_base_comes_back(unet: UNet2DConditionModel, tmp_path: Path) -> None:
    """A full difference has every rank, and PEFT wraps the layers of other adapters afterwards."""
    network, weight = copy.deepcopy(unet), unet.get_submodule(LAYER).weight.detach()
    difference = noisy(*weight.shape, seed=3)
    adapters = MergedAdapters(network, torch.nn.Identity(), {"full": save(tmp_path / "full.safetensors", {"diff": difference})})
    PeftAdapters(network, torch.nn.Identity(), {"ink": lora(tmp_path / "ink.safetensors", weight.shape[1])}).use()
    layer = network.get_submodule(LAYER).get_base_layer()
    adapters.use("full")
    torch.testing.assert_close(layer.weight, weight + difference, rtol=1e-5, atol=1e-6)
    adapters.use(None)
    assert torch.equal(layer.weight, weight)


def test_a_weight_is_a_factor_of_the_update(unet: UNet2DConditionModel, tmp_path: Path) -> None:
    network, weight = copy.deepcopy(unet), unet.get_submodule(LAYER).weight.detach()
    file = save(tmp_path / "full.safetensors", {"diff": noisy(*weight.shape, seed=3)})
    MergedAdapters(network, torch.nn.Identity(), {"full": file}, weights={"full": -2.0}).use("full")
    torch.testing.assert_close(network.get_submodule(LAYER).weight, weight - 2.0 * noisy(*weight.shape, seed=3), rtol=1e-5, atol=1e-6)
