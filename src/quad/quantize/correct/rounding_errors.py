"""The error of each weight rounded to the nearest, `W4 - W`: asked for at every backward pass, computed once as far as memory goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor

from quad.core.encoding import Encoding
from quad.quantize.encodings.fake_quantize import fake_quantize

ErrorOf = Callable[[], Tensor]

_HELD_BYTES = 2**31  # two a number: all of Stable Diffusion 1.5's U-Net


def rounding_errors(weights: Sequence[Tensor], encodings: Sequence[Encoding], held_bytes: int = _HELD_BYTES) -> list[ErrorOf]:
    """`W4 - W` of each weight, to be called for: computed once and held in bf16 as long as so many bytes last, else anew.

    Args:
        held_bytes: of all that is held.
    """
    errors: list[ErrorOf] = []
    for weight, encoding in zip(weights, encodings, strict=True):
        compute = partial(_error, weight.detach(), encoding)
        held_bytes -= 2 * weight.numel()
        errors.append(partial(_same, compute().bfloat16()) if held_bytes >= 0 else compute)
    return errors


def _error(weight: Tensor, encoding: Encoding) -> Tensor:
    return fake_quantize(weight, encoding) - weight


def _same(error: Tensor) -> Tensor:
    return error
