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
from quad.model.slots.held_weight import HeldWeight
from quad.model.slots.layers import Layer, layers_of
from quad.quantize.processes.dealt import from_each, json_codec

# Of bf16 weights that are held beside the float16 ones that they are made from: as much as inputs' Gram matrices have at the same time.
BESIDE_BYTES = 1_000_000_000
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
    """The networks' own weights in that type while the block runs, which saves a conversion at each call; then those that were there.

    Of those held in float16 as many as `BESIDE_BYTES` hold; the others are converted at each call, to the same numbers.
    """
    before: list[tuple[Layer, HeldWeight]] = []
    room = BESIDE_BYTES
    for layer in (layer for network in networks for layer in layers_of(network).values()) if float_type == BF16 else ():
        held = HeldWeight.of(layer)
        room -= 2 * held.stored.numel() if held.stored.dtype == torch.float16 and held.step is None else 0
        if held.step is None and (held.stored.dtype == torch.float32 or (held.stored.dtype == torch.float16 and room >= 0)):
            before.append((layer, held))
    try:
        for layer, held in before:
            HeldWeight(nn.Parameter(held.numbers().to(torch.bfloat16), requires_grad=False)).put(layer)
        yield
    finally:
        for layer, held in before:
            held.put(layer)
