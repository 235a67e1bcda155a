"""DQ(x8) * DQ(W4, s, z) -> DQ(x8) * DQ(int8(DQ(W4, 1, z)), s): the same numbers, in the form that a kernel of 8-bit integers reads.

`W4 - z` lies in -15 to 15, so bytes hold it exactly. The file keeps 4 bits; an engine that folds constants has bytes when it is loaded.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from quad.compile.passes.edit import Writer, constant, is_op
from quad.compile.passes.integers.dequantized import Dequantized, dequantized, write_dequantized

_LAYERS = ("Conv", "MatMul", "Gemm")
_WEIGHT = 1


class WidenWeights(ir.passes.InPlacePass):
    """Every constant weight of 4 bits that a layer multiplies with integers of 8 bits."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        widened = [_widen(node) for node in list(model.graph) if is_op(node, *_LAYERS)]
        return ir.passes.PassResult(model, any(widened))


def _widen(node: ir.Node) -> bool:
    x, weight = dequantized(node.inputs[0], ir.DataType.UINT8), dequantized(node.inputs[_WEIGHT], ir.DataType.UINT4)
    scale = None if weight is None else constant(weight.scale)
    if x is None or weight is None or scale is None or constant(weight.integers) is None:
        return False
    writer = Writer(node, f"{node.outputs[0].name}/wide")
    ones = writer.constant("one", np.ones_like(scale))
    steps = write_dequantized(writer, Dequantized(integers=weight.integers, scale=ones, zero=weight.zero, axis=weight.axis))
    node.replace_input_with(
        _WEIGHT,
        write_dequantized(writer, Dequantized(integers=as_bytes(writer, steps), scale=weight.scale, zero=None, axis=weight.axis)),
    )
    return True


def as_bytes(writer: Writer, value: ir.Value) -> ir.Value:
    """The value as signed integers of 8 bits."""
    shape = value.shape or ir.Shape(())
    cast = writer.node("Cast", [value], [n for n in shape if isinstance(n, int)], to=ir.DataType.INT8.value)
    cast.outputs[0].type = ir.TensorType(ir.DataType.INT8)
    return cast.outputs[0]
