"""MatMul(DQ(x), DQ(W)) + b of 8-bit integers -> ONNX Runtime's MatMulIntegerToFloat: integer products, float result, bias in one kernel.

Its optimizer finds this pattern by itself only where no bias follows (it makes a Gemm of that first, and computes it in float), and none
where Q/DQ pairs are to be computed as written (ADR 7). So the kernel is written down. Gemm with a constant weight is the same.
A weight of 4 bits goes in as bytes with its zero points: they are multiplied by the same kernel.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from quad.compile.passes.edit import Writer, constant, is_op, replace, sole_reader, static_shape
from quad.compile.passes.integers.dequantized import BYTE_WEIGHTS, Dequantized, dequantized
from quad.compile.passes.integers.widen_weights import as_bytes

DOMAIN, KERNEL = "com.microsoft", "MatMulIntegerToFloat"


class IntegerMatMul(ir.passes.InPlacePass):
    """Rewrite every linear layer of 8-bit input and a weight of no more."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        rewritten = [_rewrite(node) for node in list(model.graph) if is_op(node, "MatMul", "Gemm")]
        if any(rewritten):
            model.opset_imports[DOMAIN] = 1
        return ir.passes.PassResult(model, any(rewritten))


def _rewrite(node: ir.Node) -> bool:
    x, weight = dequantized(node.inputs[0], ir.DataType.UINT8), dequantized(node.inputs[1], *BYTE_WEIGHTS)
    if x is None or weight is None or x.axis is not None:
        return False
    matrix, writer = _matrix(node, weight), Writer(node, f"{node.outputs[0].name}/integer")
    if matrix is None:
        return False
    bias, output = (node.inputs[2], node.outputs[0]) if len(node.inputs) > 2 else _bias(node)
    integers = weight.integers if matrix is constant(weight.integers) else writer.constant("weight", matrix)
    zero = None
    if integers.dtype != ir.DataType.INT8:
        integers, zero = _widened(writer, integers, weight)
    kernel = writer.node(KERNEL, [x.integers, integers, x.scale, weight.scale, x.zero, zero, bias], static_shape(output) or ())
    kernel.domain = DOMAIN
    kernel.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    replace(output, kernel.outputs[0])
    return True


def _widened(writer: Writer, integers: ir.Value, weight: Dequantized) -> tuple[ir.Value, ir.Value | None]:
    """Integers and zero points of a weight of 4 bits in bytes. The file keeps 4; the engine folds the Cast when it is loaded."""
    zero = constant(weight.zero)
    return as_bytes(writer, integers), None if zero is None else writer.constant("zero", zero.astype(np.int8))


def _matrix(node: ir.Node, weight: Dequantized) -> np.ndarray | None:
    """The weight `(in, out)`, None where it is no matrix with one scale, or one for each output, or has bytes with a zero point."""
    array, zero = constant(weight.integers), constant(weight.zero)
    if array is None or array.ndim != 2 or (weight.integers.dtype == ir.DataType.INT8 and zero is not None and zero.any()):
        return None
    turned = "transB" in node.attributes and bool(node.attributes["transB"].as_int())
    if node.op_type == "Gemm" and not _plain(node):
        return None
    return (np.ascontiguousarray(array.T) if turned else array) if weight.axis in (None, 0 if turned else 1) else None


def _plain(node: ir.Node) -> bool:
    factors = all(node.attributes[name].as_float() == 1.0 for name in ("alpha", "beta") if name in node.attributes)
    bias = len(node.inputs) < 3 or node.inputs[2] is None or _is_bias(node.inputs[2], node.outputs[0])
    return factors and bias and not ("transA" in node.attributes and node.attributes["transA"].as_int())


def _is_bias(value: ir.Value | None, product: ir.Value) -> bool:
    """One number for each column: the kernel reads so many and spreads none."""
    shape = static_shape(product)
    return shape is not None and static_shape(value) == shape[-1:]


def _bias(node: ir.Node) -> tuple[ir.Value | None, ir.Value]:
    """The constant that alone is added to a MatMul, and the sum; else nothing, and the product."""
    output = node.outputs[0]
    add = sole_reader(output)
    if add is not None and is_op(add, "Add"):
        addends = [value for value in add.inputs if value is not output]
        if len(addends) == 1 and constant(addends[0]) is not None and _is_bias(addends[0], output):
            return addends[0], add.outputs[0]
    return None, output
