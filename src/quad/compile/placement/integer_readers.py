"""Where a CPU computes in integers: which readers of a Site have an integer kernel, given the profile.

A linear layer or convolution has one where both its input and its constant weight have 8 bits. A LoRA branch has none: its matrices are
inputs. It reads x as it was before rounding, which costs no second conversion. Attention has none either: 8 bits are too few for softmax
over many tokens, whose values are far below 1/255.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from quad.compile.passes.edit import constant, is_op
from quad.compile.passes.integers.dequantized import dequantized
from quad.compile.passes.integers.remove_sites import is_site, site_name
from quad.core.encoding import Encoding

Use = tuple[ir.Node, int]  # a node, and the place among its inputs

_BYTE = 8


def integer_readers(site: ir.Node, encodings: Mapping[str, Encoding], operators: Sequence[str]) -> list[Use]:
    """The readers of a Site that are to read integers; weights are placed already, Sites not yet.

    A Concat is such a reader where all its parts are Sites of 8 bits and a convolution with a kernel reads it: a skip of two encodings. Its
    LoRA branch then reads rounded values too.

    Args:
        operators: types with an integer kernel.
    """
    if not _has_byte(site, encodings):
        return []

    def has_kernel(use: Use) -> bool:
        node, place = use
        if is_op(node, "Concat"):
            makers = [None if value is None else value.producer() for value in node.inputs]
            parts = all(maker is not None and is_site(maker) and _has_byte(maker, encodings) for maker in makers)
            return parts and any(is_op(user[0], "Conv") and has_kernel(user) for user in node.outputs[0].uses())
        if place != 0 or not is_op(node, *operators):
            return False
        weight = dequantized(node.inputs[1], ir.DataType.INT8)
        return weight is not None and constant(weight.integers) is not None

    return [use for use in site.outputs[0].uses() if has_kernel(use)]


def _has_byte(site: ir.Node, encodings: Mapping[str, Encoding]) -> bool:
    encoding = encodings.get(site_name(site))
    return encoding is not None and encoding.bits == _BYTE and not encoding.signed
