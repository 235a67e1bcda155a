"""Equalization keeps the function with every adapter, evens out channels, and touches only its own network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from quad.lora.fit.channel_gains import smooth_adapter
from quad.lora.fit.slot_inputs import slot_inputs
from quad.lora.read import FloatAdapter, LowRank
from quad.model.slots.network import SlottedNetwork, slot_network
from quad.quantize.correct.smooth import LARGEST_SCALE, ChannelMaxima, norm_readers, recording_channel_maxima, smooth

BLOCK = "mid_block.attentions.0.transformer_blocks.0"
LAYERS = {f"{BLOCK}.attn1.to_q": (16, 16), f"{BLOCK}.ff.net.0.proj": (16, 128), "mid_block.attentions.0.proj_in": (16, 16)}


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    """Norms with very uneven channels, as trained ones have."""
    torch.manual_seed(0)
    made = UNet2DConditionModel(
        sample_size=8, in_channels=9, out_channels=4, block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=16,
        attention_head_dim=2, norm_num_groups=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    ).eval().requires_grad_(False)  # fmt: skip
    for one in norm_readers(made):
        norm = made.get_submodule(one.norm)
        norm.weight.mul_(torch.exp(torch.randn_like(norm.weight)))
        norm.bias.add_(torch.randn_like(norm.bias))
    return made


@pytest.fixture(scope="module")
def adapter() -> FloatAdapter:
    rng = np.random.default_rng(0)

    def pair(path: str) -> LowRank:
        inputs, outputs = LAYERS[path]
        tail = (1, 1) if path.endswith("proj_in") else ()
        shapes = (2, inputs, *tail), (outputs, 2, *tail)
        return LowRank(*(rng.normal(scale=0.3, size=shape).astype(np.float32) for shape in shapes))

    return FloatAdapter(name="ink", weights={path: pair(path) for path in LAYERS}, rank=2, digest="digest")


def tensors(adapter: FloatAdapter | None, table: Any) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(values) for name, values in slot_inputs(adapter, table).items()}


@pytest.fixture(scope="module")
def inputs() -> tuple[torch.Tensor, ...]:
    rng = np.random.default_rng(1)
    arrays = rng.normal(size=(2, 9, 8, 8)), np.array([300.0, 300.0]), rng.normal(size=(2, 5, 16))
    return tuple(torch.from_numpy(values.astype(np.float32)) for values in arrays)


def heard(network: SlottedNetwork, inputs: Any, *slots: dict[str, torch.Tensor]) -> ChannelMaxima:
    with recording_channel_maxima(network) as channels:
        for one in slots:
            network(*inputs, one)
    return channels


@pytest.fixture
def fresh(unet: UNet2DConditionModel, adapter: FloatAdapter) -> Callable[[], tuple[SlottedNetwork, Any]]:
    return lambda: slot_network(unet, (adapter,))


def test_every_foldable_norm_is_found(unet: UNet2DConditionModel) -> None:
    found = {one.norm: one.layers for one in norm_readers(unet)}
    assert found["mid_block.attentions.0.norm"] == ("mid_block.attentions.0.proj_in",)
    assert found[f"{BLOCK}.norm1"] == tuple(f"{BLOCK}.attn1.{name}" for name in ("to_q", "to_k", "to_v"))
    assert found[f"{BLOCK}.norm2"] == (f"{BLOCK}.attn2.to_q",)
    assert found[f"{BLOCK}.norm3"] == (f"{BLOCK}.ff.net.0.proj",)
    assert len(found) == 4 * 4  # down, mid and two in up
    assert not any("resnets" in norm for norm in found)


def test_the_function_is_the_same_with_and_without_an_adapter(fresh: Any, adapter: FloatAdapter, inputs: Any) -> None:
    network, table = fresh()
    before = [network(*inputs, tensors(one, table)) for one in (None, adapter)]
    unmoved = network(*inputs, tensors(adapter, table))
    gains = smooth(network, heard(network, inputs, tensors(adapter, table), {}))
    moved = smooth_adapter(adapter, gains)
    for one, expected in zip((None, moved), before, strict=True):
        assert torch.allclose(network(*inputs, tensors(one, table)), expected, atol=2e-5)
    assert not torch.allclose(network(*inputs, tensors(adapter, table)), unmoved, atol=1e-3)  # the counterpart is needed


def test_channels_come_nearer_to_each_other(fresh: Any, adapter: FloatAdapter, inputs: Any) -> None:
    network, _ = fresh()
    name = f"{BLOCK}.attn1.to_q.in"

    def spread() -> float:
        seen: list[torch.Tensor] = []
        network.sites[name].transform = lambda x: (seen.append(x), x)[1]
        network(*inputs, {})
        network.sites[name].transform = None
        return float(seen[0].abs().amax(dim=(0, 1)).log().std())

    before = spread()
    gains = smooth(network, heard(network, inputs, {}))
    assert spread() < 0.75 * before
    gain = gains[f"{BLOCK}.attn1.to_q"]
    assert np.array_equal(gain, gains[f"{BLOCK}.attn1.to_v"])
    assert np.exp(np.log(gain).mean()) == pytest.approx(1.0, rel=1e-4)
    assert max(gain.max(), 1 / gain.min()) <= LARGEST_SCALE * 1.001


def test_the_callers_network_stays(unet: UNet2DConditionModel, fresh: Any, inputs: Any) -> None:
    before = {name: values.clone() for name, values in unet.state_dict().items()}
    network, _ = fresh()
    smooth(network, heard(network, inputs, {}))
    assert all(torch.equal(values, before[name]) for name, values in unet.state_dict().items())


def test_an_adapter_elsewhere_is_left_alone(adapter: FloatAdapter) -> None:
    moved = smooth_adapter(adapter, {"other": np.full(16, 2.0, np.float32)})
    assert all(np.array_equal(moved.weights[path].a, pair.a) for path, pair in adapter.weights.items())
