"""MatMul(DQ(x), DQ(W)) + b of 8-bit integers -> ONNX Runtime's MatMulIntegerToFloat: integer products, float result, bias in one kernel.

Its optimizer finds this pattern by itself only where no bias follows (it makes a Gemm of that first, and computes it in float), and none
where Q/DQ pairs are to be computed as written (ADR 7). So the kernel is written down. Gemm with a constant weight is the same.
A weight of 4 bits goes in as bytes with its zero points: they are multiplied by the same kernel.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from quad.compile.passes.edit import Writer, constant, is_op, replace, static_shape
from quad.compile.passes.integers.dequantized import BYTE_WEIGHTS, Dequantized, dequantized
from quad.compile.passes.integers.linear_layer import LinearLayer
from quad.compile.passes.integers.remove_sites import CONTRIBUTED
from quad.compile.passes.integers.widen_weights import as_bytes

KERNEL = "MatMulIntegerToFloat"


class IntegerMatMul(ir.passes.InPlacePass):
    """Rewrite every linear layer of 8-bit input and a weight of no more."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        rewritten = [_rewrite(node) for node in list(model.graph) if is_op(node, "MatMul", "Gemm")]
        if any(rewritten):
            model.opset_imports[CONTRIBUTED] = 1
        return ir.passes.PassResult(model, any(rewritten))


def _rewrite(node: ir.Node) -> bool:
    x, weight, layer = dequantized(node.inputs[0], ir.DataType.UINT8), dequantized(node.inputs[1], *BYTE_WEIGHTS), LinearLayer.of(node)
    if x is None or weight is None or x.axis is not None or layer is None:
        return False
    matrix, writer, output = _matrix(layer, weight), Writer(node, f"{node.outputs[0].name}/integer"), layer.output
    if matrix is None:
        return False
    integers = weight.integers if matrix is constant(weight.integers) else writer.constant("weight", matrix)
    zero = None
    if integers.dtype != ir.DataType.INT8:
        integers, zero = _widened(writer, integers, weight)
    kernel = writer.node(KERNEL, [x.integers, integers, x.scale, weight.scale, x.zero, zero, layer.bias], static_shape(output) or ())
    kernel.domain = CONTRIBUTED
    kernel.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    replace(output, kernel.outputs[0])
    return True


def _widened(writer: Writer, integers: ir.Value, weight: Dequantized) -> tuple[ir.Value, ir.Value | None]:
    """Integers and zero points of a weight of 4 bits in bytes. The file keeps 4; the engine folds the Cast when it is loaded."""
    zero = constant(weight.zero)
    return as_bytes(writer, integers), None if zero is None else writer.constant("zero", zero.astype(np.int8))


def _matrix(layer: LinearLayer, weight: Dequantized) -> np.ndarray | None:
    """The weight `(in, out)`, None where it is no matrix with one scale, or one for each output, or has bytes with a zero point."""
    array, zero = constant(weight.integers), constant(weight.zero)
    if array is None or array.ndim != 2 or (weight.integers.dtype == ir.DataType.INT8 and zero is not None and zero.any()):
        return None
    return (np.ascontiguousarray(array.T) if layer.turned else array) if weight.axis in (None, layer.channel_axis) else None
