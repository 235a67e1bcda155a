"""Statistics heard in bf16: for ranges and means half of the bits of a product will do. Answers that something is scored on stay float32.

Source: docs/adr/0050-bf16-statistics.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn

from quad.core.errors import CompatibilityError, UsageError, mismatch
from quad.core.float_type import AUTO, BF16, F32, FLOAT_TYPES
from quad.model.device import HERE
from quad.model.slots.layers import layers_of
from quad.quantize.processes.dealt import from_each, json_codec

LARGE = 100_000_000  # weights of the denoiser: smaller ones are heard as fast in float32


def check_statistics_type(asked: str, *, offered: bool) -> None:
    """Refuse what cannot be.

    Args:
        asked: `f32`, `bf16` or `auto`.
        offered: the processor has instructions for bf16.

    Raises:
        UsageError: another word. CompatibilityError: bf16 is asked for and not offered.
    """
    if asked not in FLOAT_TYPES:
        raise UsageError(mismatch("--statistics", " | ".join(FLOAT_TYPES), repr(asked), "choose one of these"))
    if asked == BF16 and not offered:
        raise CompatibilityError(mismatch("--statistics", f"{F32}, all that this processor has instructions for", BF16, "leave it out"))


def choose_statistics_type(asked: str, *, offered: bool, weights: int) -> str:
    """`f32` or `bf16`: as asked, and of `auto` bf16 where it is offered and the denoiser is large.

    Args:
        weights: of the denoiser, how many.
    """
    if asked == AUTO:
        return BF16 if offered and weights >= LARGE else F32
    return asked


def bf16_offered(device: torch.device) -> bool:
    """Whether torch multiplies bf16 by instructions of its own on this device, in every process of the launch; known of x86 alone."""
    here = device == HERE and bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return all(from_each(here, json_codec(bool)))


def computing_in(float_type: str) -> AbstractContextManager[object]:
    """Products of this thread in that type while the block runs."""
    return torch.autocast(HERE.type, torch.bfloat16) if float_type == BF16 else nullcontext()


@contextmanager
def weights_in(float_type: str, networks: Iterable[nn.Module]) -> Iterator[None]:
    """The networks' own weights in that type while the block runs, which saves a conversion at each call; then those that were there."""
    before = [
        (layer, layer.weight) for network in networks for layer in layers_of(network).values() if layer.weight.dtype == torch.float32
    ] if float_type == BF16 else []  # fmt: skip
    try:
        for layer, weight in before:
            layer.weight = nn.Parameter(weight.to(torch.bfloat16), requires_grad=False)
        yield
    finally:
        for layer, weight in before:
            layer.weight = weight
