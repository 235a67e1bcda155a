"""Where a CPU computes in integers: which readers of a Site have an integer kernel, given the profile.

A linear layer or convolution has one where its input has 8 bits and its constant weight 8 or 4. A LoRA branch has none: its matrices are
inputs. It reads x as it was before rounding, which costs no second conversion. A product of attention has one where both operands have 8
bits, and the engine multiplies two computed values as integers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from quad.compile.passes.edit import constant, is_op, sole_reader
from quad.compile.passes.integers.dequantized import BYTE_WEIGHTS, dequantized
from quad.compile.passes.integers.remove_sites import is_site, site_name
from quad.core.encoding import Encoding

Use = tuple[ir.Node, int]  # a node, and the place among its inputs

_BYTE = 8


def integer_readers(site: ir.Node, encodings: Mapping[str, Encoding], operators: Sequence[str], *, products: bool = False) -> list[Use]:
    """The readers of a Site that are to read integers; weights are placed already, Sites not yet.

    A Concat is such a reader where all its parts are Sites of 8 bits and a convolution with a kernel reads it: a skip of two encodings. Its
    LoRA branch then reads rounded values too.

    Args:
        operators: types with an integer kernel.
        products: a product of two computed values has one too, where the right one of them is signed with the zero point 0.
    """
    if _bits(site, encodings) != _BYTE:
        return []

    def has_kernel(use: Use) -> bool:
        node, place = use
        if is_op(node, "Concat"):
            makers = [None if value is None else value.producer() for value in node.inputs]
            parts = all(maker is not None and is_site(maker) and _has_byte(maker, encodings) for maker in makers)
            return parts and any(is_op(user[0], "Conv") and has_kernel(user) for user in node.outputs[0].uses())
        if products and _multiplies_bytes(use, encodings):
            return True
        if place != 0 or not is_op(node, *operators) or not _has_byte(site, encodings):
            return False
        weight = dequantized(node.inputs[1], *BYTE_WEIGHTS)
        return weight is not None and constant(weight.integers) is not None

    return [use for use in site.outputs[0].uses() if has_kernel(use)]


def _multiplies_bytes(use: Use, encodings: Mapping[str, Encoding]) -> bool:
    """Does the use lead, at once or through a Transpose, to a product of two Sites of 8 bits."""
    node: ir.Node | None = use[0]
    if is_op(node, "Transpose") and node is not None:
        node = sole_reader(node.outputs[0])
    if node is None or not is_op(node, "MatMul"):
        return False
    left, right = (_site_of(value) for value in node.inputs)
    if left is None or right is None or {_bits(left, encodings), _bits(right, encodings)} != {_BYTE}:
        return False
    encoding = encodings[site_name(right)]
    return encoding.signed and not any(encoding.zero_point)


def _site_of(value: ir.Value | None) -> ir.Node | None:
    """The Site that an operand is, at once or transposed."""
    maker = None if value is None else value.producer()
    if maker is not None and is_op(maker, "Transpose"):
        maker = None if maker.inputs[0] is None else maker.inputs[0].producer()
    return maker if maker is not None and is_site(maker) else None


def _bits(site: ir.Node, encodings: Mapping[str, Encoding]) -> int | None:
    encoding = encodings.get(site_name(site))
    return None if encoding is None else encoding.bits


def _has_byte(site: ir.Node, encodings: Mapping[str, Encoding]) -> bool:
    """Is it an unsigned integer of 8 bits, as layers with a constant weight read it."""
    return _bits(site, encodings) == _BYTE and not encodings[site_name(site)].signed
