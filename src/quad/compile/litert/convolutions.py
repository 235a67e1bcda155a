"""Rules of convolutions: channels last, and a weight that is computed makes a product.

A slot of a convolution is one product with the places that each of its taps reads, side by side: no engine takes a filter that is an input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_ir as ir

from quad.compile.litert.layout import channels_last
from quad.compile.litert.lowering import Lowering, constant_name
from quad.compile.litert.products import ConstantLayer, layer_bias, write_layer, write_product
from quad.core.errors import UnsupportedError, mismatch

_SAME, _VALID = 0, 1  # the schema's words for a window's edges


@dataclass(frozen=True)
class _Window:
    """A convolution's geometry: rows, then columns."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    pads: tuple[int, int, int, int]  # top, left, bottom, right


def _window(node: ir.Node, kernel: Sequence[int]) -> _Window:
    def ints(name: str, default: Sequence[int]) -> tuple[int, ...]:
        return tuple(node.attributes[name].as_ints()) if name in node.attributes else tuple(default)

    group = node.attributes["group"].as_int() if "group" in node.attributes else 1
    automatic = "auto_pad" in node.attributes and node.attributes["auto_pad"].as_string() != "NOTSET"
    if len(kernel) != 2 or group != 1 or set(ints("dilations", (1, 1))) != {1} or automatic:
        expected = "a convolution of pictures without groups or dilation"
        raise UnsupportedError(mismatch(f"{node.name}", expected, "another", "report it with the model's name"))
    rows, columns = kernel
    top, left, bottom, right = ints("pads", (0, 0, 0, 0))
    down, along = ints("strides", (1, 1))
    return _Window((rows, columns), (down, along), (top, left, bottom, right))


def convolution(lowering: Lowering, node: ir.Node) -> None:
    """Channels last; a weight that is computed makes a product."""
    known = lowering.constant(node.inputs[1])
    x = lowering.in_order(lowering.operand(node.inputs[0]), channels_last(4))
    window = _window(node, lowering.shape(node.inputs[1])[2:])
    if known is None:
        _slot_product(lowering, node, x, window)
        return
    weight, encoding = known
    padding = _padding(lowering.builder.tensors[x].shape[1:3], window)
    if padding is None:
        x, padding = _padded(lowering, x, window), _VALID
    options = {"padding": padding, "strideH": window.strides[0], "strideW": window.strides[1]}
    layer = ConstantLayer(kind="CONV_2D", table="Conv2DOptions", options=options, x=x, name=constant_name(node.inputs[1]),
                   weight=np.transpose(weight, channels_last(4)), encoding=encoding, bias=layer_bias(lowering, node, x))  # fmt: skip
    write_layer(lowering, layer, lowering.result(node.outputs[0], channels_last(4)))


def _padding(size: tuple[int, ...], window: _Window) -> int | None:
    """The schema's word for these pads; None where it has none."""
    if not any(window.pads):
        return _VALID
    top, left, bottom, right = window.pads
    for n, kernel, stride, first, last in zip(size, window.kernel, window.strides, (top, left), (bottom, right), strict=True):
        total = max((-(-n // stride) - 1) * stride + kernel - n, 0)
        if (first, last) != (total // 2, total - total // 2):
            return None
    return _SAME


def _padded(lowering: Lowering, x: int, window: _Window) -> int:
    if not any(window.pads):
        return x
    top, left, bottom, right = window.pads
    batch, height, width, channels = lowering.builder.tensors[x].shape
    output = lowering.temporary(x, "padded", (batch, height + top + bottom, width + left + right, channels))
    pads = lowering.builder.constant("pads", np.array([(0, 0), (top, bottom), (left, right), (0, 0)], np.int32))
    lowering.operator("PAD", [x, pads], [output])
    return output


def _slot_product(lowering: Lowering, node: ir.Node, x: int, window: _Window) -> None:
    """`y = taps(x) W^T`: W (out, in, rows, columns) as the slot brings it, its taps before its channels."""
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        raise UnsupportedError(mismatch(f"{node.name}", "a convolution by a slot without a bias", "one", "report it"))
    batch, channels, height, width = lowering.shape(node.outputs[0])
    taps = _taps(lowering, _padded(lowering, x, window), window, (height, width))
    filters = lowering.operand(node.inputs[1])
    rank = lowering.shape(node.inputs[1])
    matrix = lowering.reshaped(lowering.in_order(filters, channels_last(4)), (rank[0], prod(rank[1:])), "matrix")
    rows = lowering.reshaped(taps, (batch, height * width, prod(rank[1:])), "rows")
    output = lowering.result(node.outputs[0], channels_last(4))
    product = lowering.temporary(output, "product", (batch, height * width, channels))
    write_product(lowering, rows, matrix, product, adjoint=True)
    shape = (batch, height, width, channels)
    lowering.operator("RESHAPE", [product, lowering.integers("shape", shape)], [output], newShape=list(shape))


def _taps(lowering: Lowering, x: int, window: _Window, size: tuple[int, int]) -> int:
    """The places that each tap of a kernel reads, beside each other as channels."""
    if window.kernel == (1, 1) and window.strides == (1, 1):
        return x
    batch, _, _, channels = lowering.builder.tensors[x].shape
    height, width = size
    parts = []
    for row in range(window.kernel[0]):
        for column in range(window.kernel[1]):
            part = lowering.temporary(x, f"tap/{row}/{column}", (batch, height, width, channels))
            begin = (0, row, column, 0)
            if window.strides == (1, 1):
                size_of = lowering.integers("size", (batch, height, width, channels))
                lowering.operator("SLICE", [x, lowering.integers("begin", begin), size_of], [part])
            else:
                down, along = window.strides
                end = (batch, row + (height - 1) * down + 1, column + (width - 1) * along + 1, channels)
                steps = lowering.integers("strides", (1, down, along, 1))
                lowering.operator("STRIDED_SLICE", [x, lowering.integers("begin", begin), lowering.integers("end", end), steps], [part])
            parts.append(part)
    output = lowering.temporary(x, "taps", (batch, height, width, channels * len(parts)))
    lowering.operator("CONCATENATION", parts, [output], axis=3)
    return output
