"""Conv(DQ(x), DQ(W)) of 8-bit integers -> the taps of x side by side, one MatMul, still on integers.

For engines whose integer matmul is good and whose integer convolution is not, or gives integers only (measured: ADR 8). The copies are of
bytes; all of it is standard ONNX and means the same.

1. 1x1, stride 1   x -> Transpose -> DQ -> MatMul -> Transpose
2. others          x -> Transpose -> Pad -> Slice for each tap -> Concat -> DQ -> MatMul -> Transpose
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from quad.compile.passes.edit import Writer, constant, is_op, replace, static_shape
from quad.compile.passes.integers.dequantized import BYTE_WEIGHTS, Dequantized, dequantized, write_dequantized

_LAST, _BACK = (0, 2, 3, 1), (0, 3, 1, 2)


class IntegerConv(ir.passes.InPlacePass):
    """Write every convolution over pictures of 8-bit input, and a weight of 8 or 4, as a matmul; groups of 1, no dilation."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        convolutions = [(node, window) for node in model.graph if is_op(node, "Conv") and (window := _window(node)) is not None]
        for node, window in convolutions:
            _rewrite(node, window)
        return ir.passes.PassResult(model, bool(convolutions))


@dataclass(frozen=True)
class _Window:
    """A convolution's geometry: kernel, strides, (top, left, bottom, right) padding."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    pads: tuple[int, int, int, int]

    @property
    def is_point(self) -> bool:
        return (*self.kernel, *self.strides, *self.pads) == (1, 1, 1, 1, 0, 0, 0, 0)


def _ints(node: ir.Node, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(node.attributes[name].as_ints()) if name in node.attributes else default


def _window(node: ir.Node) -> _Window | None:
    x, weight = dequantized(node.inputs[0], ir.DataType.UINT8), dequantized(node.inputs[1], *BYTE_WEIGHTS)
    shapes = (static_shape(node.inputs[0]), static_shape(node.outputs[0]))
    if x is None or weight is None or constant(weight.integers) is None or None in shapes:
        return None
    if x.axis is not None or weight.axis not in (None, 0):
        return None
    kernel = (static_shape(weight.integers) or ())[2:]
    groups = node.attributes["group"].as_int() if "group" in node.attributes else 1
    counted = "auto_pad" not in node.attributes or node.attributes["auto_pad"].as_string() == "NOTSET"
    if len(kernel) != 2 or groups != 1 or not counted or _ints(node, "dilations", (1, 1)) != (1, 1):
        return None
    (rows, columns), (down, right) = kernel, _ints(node, "strides", (1, 1))
    top, left, bottom, end = _ints(node, "pads", (0, 0, 0, 0))
    return _Window((rows, columns), (down, right), (top, left, bottom, end))


def _rewrite(node: ir.Node, window: _Window) -> None:
    x, weight = dequantized(node.inputs[0]), dequantized(node.inputs[1])
    shape, array = static_shape(node.outputs[0]) or (), constant(weight.integers) if weight else None
    if x is None or weight is None or array is None:
        return
    writer = Writer(node, str(node.outputs[0].name))
    taps = writer.transpose(x.integers, _LAST)
    if not window.is_point:
        taps = _taps(writer, taps, x, window, shape[2:])
    matrix = writer.constant("weight", np.ascontiguousarray(array.transpose(2, 3, 1, 0).reshape(-1, array.shape[0])))
    left = write_dequantized(writer, Dequantized(integers=taps, scale=x.scale, zero=x.zero, axis=None))
    right = write_dequantized(
        writer, Dequantized(integers=matrix, scale=weight.scale, zero=weight.zero, axis=None if weight.axis is None else 1)
    )
    wide = [shape[axis] for axis in _LAST]
    product = writer.value("MatMul", [left, right], wide)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        product = writer.value("Add", [product, node.inputs[2]], wide)
    replace(node.outputs[0], writer.transpose(product, _BACK))


def _taps(writer: Writer, x: ir.Value, encoding: Dequantized, window: _Window, size: tuple[int, ...]) -> ir.Value:
    """`(1, h, w, kernel positions x channels)`: what each output pixel sees; beyond the edge lies real zero."""
    batch, height, width, channels = static_shape(x) or ()
    top, left, bottom, right = window.pads
    if any(window.pads):
        amounts = writer.constant("pads", np.array([0, top, left, 0, 0, bottom, right, 0], np.int64))
        x = writer.value("Pad", [x, amounts, encoding.zero], (batch, height + top + bottom, width + left + right, channels))
    axes, steps = writer.constant("axes", np.array([1, 2], np.int64)), writer.constant("steps", np.array(window.strides, np.int64))
    reach = (np.array(size) - 1) * window.strides + 1
    taps = []
    for place in np.ndindex(window.kernel):
        start = np.array(place, np.int64)
        bounds = [writer.constant("start", start), writer.constant("end", start + reach)]
        taps.append(writer.value("Slice", [x, *bounds, axes, steps], (batch, *size, channels)))
    return writer.value("Concat", taps, (batch, *size, len(taps) * channels), axis=3)
