"""The error of each weight rounded to the nearest, `W4 - W`: asked for at every call, computed once as far as memory goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate

from torch import Tensor

from quad.model.slots.held_weight import HeldWeight
from quad.model.slots.layers import Layer, weight_array
from quad.quantize.correct.four_bits import four_bit_encoding
from quad.quantize.encodings.fake_quantize import FakeQuantizer
from quad.quantize.observe.side_by_side import side_by_side

ErrorOf = Callable[[], Tensor]

_HELD_BYTES = 2**31  # two a number: all of Stable Diffusion 1.5's U-Net


def rounding_errors(layers: Sequence[Layer], *, signed: bool = False, held_bytes: int = _HELD_BYTES) -> list[ErrorOf]:
    """`W4 - W` of each layer's weight, to be called for: computed once and held in bf16 as long as so many bytes last, else anew.

    Args:
        signed: as of `four_bit_encoding`.
        held_bytes: of all that is held.
    """
    ends = accumulate(2 * layer.weight.numel() for layer in layers)

    def error_of(asked: tuple[Layer, int]) -> ErrorOf:
        layer, end = asked
        compute = partial(_error, HeldWeight.of(layer), FakeQuantizer(four_bit_encoding(weight_array(layer), signed=signed)))
        return partial(_same, compute().bfloat16()) if end <= held_bytes else compute

    return side_by_side(error_of, zip(layers, ends, strict=True))


def _error(held: HeldWeight, quantizer: FakeQuantizer) -> Tensor:
    numbers = held.numbers().detach()
    return quantizer(numbers) - numbers


def _same(error: Tensor) -> Tensor:
    return error
