"""Conv with a computed weight -> the taps of x by slices, side by side, and one MatMul with the weight on its left.

1. 1x1, stride 1, no padding   x -> Reshape -> MatMul(W, x) -> Reshape
2. others                      x -> Pad -> Slice for each tap -> Concat -> Reshape -> MatMul(W, taps) -> Reshape

W, which is the smaller one, is turned to the order of the taps. For compilers that want the weight of a convolution to be a constant.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_ir as ir

from quad.compile.passes.edit import Writer, constant, is_op, replace, static_shape

_TAPS_FIRST = (0, 2, 3, 1)


class DynamicConv(ir.passes.InPlacePass):
    """Rewrite every convolution over pictures whose weight is no constant; groups of 1, as slots are written."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        convolutions = [node for node in model.graph if _is_dynamic(node)]
        for node in convolutions:
            _rewrite(node)
        return ir.passes.PassResult(model, bool(convolutions))

    def ensures(self, model: ir.Model) -> None:
        """Every convolution has a constant weight."""
        if left := [node.name for node in model.graph if _is_dynamic(node)]:
            raise ir.passes.PostconditionError(f"{left[0]} still convolves two computed values")


@dataclass(frozen=True, kw_only=True)
class _Window:
    """A convolution's geometry along rows and columns; `pads` are (top, left, bottom, right)."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int, int, int]

    @property
    def is_point(self) -> bool:
        return (*self.kernel, *self.strides, *self.pads) == (1, 1, 1, 1, 0, 0, 0, 0)


def _is_dynamic(node: ir.Node) -> bool:
    return is_op(node, "Conv") and constant(node.inputs[1]) is None


def _window(node: ir.Node, kernel: tuple[int, ...]) -> _Window:
    def ints(name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(node.attributes[name].as_ints()) if name in node.attributes else default

    groups = node.attributes["group"].as_int() if "group" in node.attributes else 1
    counted = "auto_pad" not in node.attributes or node.attributes["auto_pad"].as_string() == "NOTSET"
    if len(kernel) != 2 or groups != 1 or not counted:
        raise ir.passes.PassError(f"{node.name}: a computed weight of another form than a slot's")
    (rows, columns), (down, right) = kernel, ints("strides", (1, 1))
    (below, beside), (top, left, bottom, end) = ints("dilations", (1, 1)), ints("pads", (0, 0, 0, 0))
    return _Window(kernel=(rows, columns), strides=(down, right), dilations=(below, beside), pads=(top, left, bottom, end))


def _rewrite(node: ir.Node) -> None:
    x, weight = node.inputs[:2]
    in_shape, shape, weight_shape = static_shape(node.inputs[0]), static_shape(node.outputs[0]), static_shape(node.inputs[1])
    if x is None or weight is None or in_shape is None or shape is None or weight_shape is None:
        raise ir.passes.PassError(f"{node.name}: a shape that is not known")
    window = _window(node, weight_shape[2:])
    writer = Writer(node, str(node.outputs[0].name))
    if not window.is_point:
        x = _taps(writer, x, window, shape[2:])
    if window.kernel != (1, 1):
        weight = writer.transpose(weight, _TAPS_FIRST)
    matrix = writer.reshape(weight, (weight_shape[0], prod(weight_shape[1:])))
    columns = writer.reshape(x, (shape[0], prod(weight_shape[1:]), prod(shape[2:])))
    product = writer.value("MatMul", [matrix, columns], (shape[0], weight_shape[0], prod(shape[2:])))
    product = writer.reshape(product, shape)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        product = writer.value("Add", [product, writer.reshape(bias, (weight_shape[0], 1, 1))], shape)
    replace(node.outputs[0], product)


def _taps(writer: Writer, x: ir.Value, window: _Window, size: tuple[int, ...]) -> ir.Value:
    """`(batch, kernel positions x channels, *size)`: what each output pixel sees; beyond the edge lies zero."""
    batch, channels, height, width = static_shape(x) or ()
    top, left, bottom, right = window.pads
    if any(window.pads):
        amounts = writer.constant("pads", np.array([0, 0, top, left, 0, 0, bottom, right], np.int64))
        x = writer.value("Pad", [x, amounts], (batch, channels, height + top + bottom, width + left + right))
    axes, steps = writer.constant("axes", np.array([2, 3], np.int64)), writer.constant("steps", np.array(window.strides, np.int64))
    reach = (np.array(size) - 1) * window.strides + 1
    taps = []
    for place in np.ndindex(window.kernel):
        start = np.array(place, np.int64) * window.dilations
        bounds = [writer.constant("start", start), writer.constant("end", start + reach)]
        taps.append(writer.value("Slice", [x, *bounds, axes, steps], (batch, channels, *size)))
    if len(taps) == 1:
        return taps[0]
    return writer.value("Concat", taps, (batch, len(taps) * channels, *size), axis=1)
