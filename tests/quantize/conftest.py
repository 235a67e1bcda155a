"""A tiny random U-Net with slots, and adapters of very different sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from quad.core.manifest import LatentSpec, NoiseSchedule, SamplerSpec, TaskSpec, TextSpec
from quad.core.picture_size import square
from quad.core.profile import Profile
from quad.core.slots import SlotTable
from quad.lora.fit.integers import balanced_inputs
from quad.lora.read import FloatAdapter, LowRank
from quad.model.base.open import Base
from quad.model.slots.layers import weights_of
from quad.model.slots.network import SlottedNetwork, slot_network
from quad.quantize.observe.calibrate import CalibrationSample
from quad.quantize.observe.observers import Feed, Statistics, observe
from quad.quantize.profile.pooled_profile import UnifyOptions, unify

ATTENTION = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "mid_block.resnets.0.conv1"
TASKS = {
    "text-to-image": TaskSpec(adapter=None, sampler=SamplerSpec(kind="ddim", steps=2), condition="none", mask="ones", guidance=3.0),
    "sketch": TaskSpec(adapter="loud", sampler=SamplerSpec(kind="euler", steps=2), condition="image", mask="ones"),
    "removal": TaskSpec(adapter="faint", sampler=SamplerSpec(kind="lcm", steps=2), condition="masked-image", mask="input"),
}


def draw_adapter(name: str, seed: int, rank: int, sizes: tuple[float, float]) -> FloatAdapter:
    """An adapter on one Linear and one convolution; `sizes` scale A and B."""
    rng = np.random.default_rng(seed)

    def pair(down: tuple[int, ...], up: tuple[int, ...]) -> LowRank:
        return LowRank(*(rng.normal(scale=size, size=shape).astype(np.float32) for size, shape in zip(sizes, (down, up), strict=True)))

    weights = {ATTENTION: pair((rank, 16), (16, rank)), CONV: pair((rank, 16, 3, 3), (16, rank, 1, 1))}
    return FloatAdapter(name=name, weights=weights, rank=rank, digest=f"digest of {name}")


@dataclass(frozen=True)
class Tiny:
    """Everything that the stages take."""

    network: SlottedNetwork
    table: SlotTable
    adapters: tuple[FloatAdapter, ...]
    statistics: Statistics
    profile: Profile
    inputs: tuple[Tensor, Tensor, Tensor]

    def slots(self, adapter: FloatAdapter | None) -> dict[str, Tensor]:
        return {name: torch.from_numpy(values) for name, values in balanced_inputs(adapter, self.table).items()}


@pytest.fixture(scope="session")
def make_adapter() -> Callable[..., FloatAdapter]:
    return draw_adapter


def make_tiny() -> Tiny:
    """The same one every time, in a process without pytest too."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=9, out_channels=4, block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=16,
        attention_head_dim=2, norm_num_groups=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    ).eval().requires_grad_(False)  # fmt: skip
    adapters = (draw_adapter("faint", 1, 2, (1e-3, 1.0)), draw_adapter("loud", 2, 4, (2.0, 0.1)))
    network, table = slot_network(unet, adapters)
    inputs = torch.randn(2, 9, 8, 8), torch.tensor([500.0]), torch.randn(2, 5, 16)

    def feed(adapter: FloatAdapter | None) -> Feed:
        slots = {name: torch.from_numpy(values) for name, values in balanced_inputs(adapter, table).items()}
        return Feed(adapter.name if adapter else "base", partial(network, *inputs, slots))

    statistics = observe({"unet": network}, [feed(adapter) for adapter in (None, *adapters)])
    profile = unify(statistics, {"unet": weights_of(network)}, table, adapters, UnifyOptions())
    return Tiny(network, table, adapters, statistics, profile, inputs)


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    return make_tiny()


@pytest.fixture(scope="session")
def base(tiny: Tiny) -> Base:
    """A whole tiny model around the U-Net of `tiny`, with three tasks."""
    from diffusers import AutoencoderTiny
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    vae = AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(0, 1), num_decoder_blocks=(1, 1)
    )
    config = CLIPTextConfig(
        vocab_size=8, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=6
    )
    text = CLIPTextModel(config)
    words = Tokenizer(WordLevel({"<pad>": 0, "<unk>": 1, "a": 2, "house": 3}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    unet = tiny.network.unet
    for module in (vae, text):
        module.eval().requires_grad_(False)
    latent = LatentSpec(channels=4, factor=2, scale=(0.5, 1.0, 2.0, 1.0), shift=(0.1, 0.0, -0.1, 0.0))
    return Base(
        directory=Path(),
        unet=unet,
        text_encoder=text,
        vae=vae,
        tokenizer=words.to_str(),
        schedule=NoiseSchedule(),
        latent=latent,
        text=TextSpec(length=6, pad_id=0, hidden=16),
        picture_size=square(16),
        tasks=TASKS,
        digest="digest",
    )


@pytest.fixture(scope="session")
def samples() -> list[CalibrationSample]:
    """One call of each task."""
    rng = np.random.default_rng(0)
    image, mask = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8), np.zeros((16, 16), np.uint8)
    mask[4:9, 4:9] = 255
    return [
        CalibrationSample(task="text-to-image", prompt="a house"),
        CalibrationSample(task="sketch", prompt="a house", image=image),
        CalibrationSample(task="removal", prompt="a", image=image, mask=mask),
    ]
