"""SDXL's U-Net at a share of its width and depth, as a build holds it behind `round`: random integers with steps, a byte a number."""

from __future__ import annotations

import numpy as np
import torch
from benchmarks.rig.xl_world import Shape, xl_unet_options
from torch import Tensor, nn

from quad.core.encoding import encode_range
from quad.model.base.text_time_unet import TextTimeUNet
from quad.model.slots.held_weight import STEP, HeldWeight

_SEED, _BIAS, _TOKENS = 0, 0.01, 77


def rounded_xl_unet(shape: Shape) -> TextTimeUNet:
    """The U-Net; its memory is that of its integers."""
    with torch.device("meta"):
        unet: TextTimeUNet = TextTimeUNet(**xl_unet_options(shape))
    draw = np.random.default_rng(_SEED)
    for layer in unet.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            _fill(layer, draw)
        elif isinstance(layer, nn.GroupNorm | nn.LayerNorm):
            layer.weight, layer.bias = (_parameter(torch.full(layer.weight.shape, value)) for value in (1.0, 0.0))
    return unet.eval()


def _fill(layer: nn.Linear | nn.Conv2d, draw: np.random.Generator) -> None:
    shape = tuple(layer.weight.shape)
    integers = np.clip(draw.integers(-128, 128, shape, np.int8), -127, None)
    largest = (3.0 / float(np.prod(shape[1:]))) ** 0.5  # so that a layer keeps its input's size
    high = np.full(shape[0], largest)
    held = HeldWeight.of_integers(torch.from_numpy(integers), encode_range(-high, high, bits=8, signed=True, symmetric=True, axis=0))
    layer.register_buffer(STEP, None, persistent=False)
    held.put(layer)
    if layer.bias is not None:
        layer.bias = _parameter(torch.from_numpy(draw.normal(0.0, _BIAS, shape[0]).astype(np.float32)))


def _parameter(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


def xl_inputs(unet: TextTimeUNet, latent: int) -> dict[str, Tensor]:
    """The inputs of one step, slots apart.

    Args:
        latent: side of the latent.
    """
    generator, width = torch.Generator().manual_seed(_SEED), int(unet.config.cross_attention_dim)
    rows = _TOKENS + -(-unet.pooled // width) + -(-unet.size_channels // width)
    return {
        "sample": torch.randn(1, 4, latent, latent, generator=generator),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": torch.randn(1, rows, width, generator=generator),
    }
