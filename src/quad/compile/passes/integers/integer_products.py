"""After placement: MatMul(DQ(a), DQ(b)) of two computed 8-bit values -> ONNX Runtime's MatMulIntegerToFloat.

    softmax(DQ(Q(q)) T(DQ(Q(k)))) DQ(Q(v))   ->   DQ'(Q(q) T(Q(k))) and so on: integer products, float results

The kernel is fast where its right operand is signed and symmetric, and its left one unsigned: integers `[-128, 127]` become `[0, 255]` with
the zero point 128, which are the same numbers.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from quad.compile.passes.edit import Writer, constant, is_op, producer, replace, static_shape
from quad.compile.passes.integers.dequantized import Dequantized, dequantized
from quad.compile.passes.integers.integer_matmul import KERNEL
from quad.compile.passes.integers.remove_sites import CONTRIBUTED

LEAST_KEYS = 2048  # with 1,024 and fewer, float products are faster on two threads (docs/adr/0042)
_MIDDLE = np.array(128, np.uint8)


class IntegerProducts(ir.passes.InPlacePass):
    """Rewrite every product of two computed values of 8 bits whose attention has so many keys.

    Args:
        least_keys: of an attention; with fewer the product stays, and is computed as written.
    """

    def __init__(self, least_keys: int = LEAST_KEYS) -> None:
        super().__init__()
        self._least_keys = least_keys

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        products = [node for node in list(model.graph) if is_op(node, "MatMul") and _keys(node) >= self._least_keys]
        rewritten = [_rewrite(node) for node in products]
        if any(rewritten):
            model.opset_imports[CONTRIBUTED] = 1
        return ir.passes.PassResult(model, any(rewritten))


def _rewrite(node: ir.Node) -> bool:
    output, turn = node.outputs[0], producer(node.inputs[1], "Transpose")
    left, right = dequantized(node.inputs[0]), dequantized(node.inputs[1] if turn is None else turn.inputs[0], ir.DataType.INT8)
    if left is None or right is None or not (_is_computed(left) and _is_computed(right) and _is_symmetric(right)):
        return False
    writer = Writer(node, f"{output.name}/integer")
    unsigned = _unsigned(writer, left)
    if unsigned is None:
        return False
    integers = right.integers
    if turn is not None:
        turned = writer.like(turn, [integers], static_shape(turn.outputs[0]) or ())
        turned.outputs[0].type = ir.TensorType(ir.DataType.INT8)
        integers = turned.outputs[0]
    kernel = writer.node(KERNEL, [unsigned.integers, integers, left.scale, right.scale, unsigned.zero], static_shape(output) or ())
    kernel.domain = CONTRIBUTED
    kernel.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    replace(output, kernel.outputs[0])
    return True


def _keys(product: ir.Node) -> int:
    """Of the attention that `q k^T` or `p v` is part of: the longer of the last axes of its result and its left operand, as heads are
    narrow; 0 where neither is known."""
    shapes = [static_shape(value) for value in (product.inputs[0], product.outputs[0])]
    return max((shape[-1] for shape in shapes if shape), default=0)


def _is_computed(encoded: Dequantized) -> bool:
    """Is it quantized here, with one scale."""
    return encoded.axis is None and producer(encoded.integers, "QuantizeLinear") is not None


def _is_symmetric(encoded: Dequantized) -> bool:
    zero = constant(encoded.zero)
    return encoded.zero is None or (zero is not None and not zero.any())


def _unsigned(writer: Writer, encoded: Dequantized) -> Dequantized | None:
    """The same numbers as unsigned integers; None where they are neither."""
    quantize = producer(encoded.integers, "QuantizeLinear")
    if encoded.integers.dtype == ir.DataType.UINT8:
        return encoded
    if quantize is None or encoded.integers.dtype != ir.DataType.INT8 or not _is_symmetric(encoded):
        return None
    zero = writer.constant("zero", _MIDDLE)
    again = writer.node("QuantizeLinear", [quantize.inputs[0], encoded.scale, zero], static_shape(encoded.integers) or ())
    again.name = quantize.name  # by which whoever watches the site finds it
    again.outputs[0].type = ir.TensorType(ir.DataType.UINT8)
    return Dequantized(integers=again.outputs[0], scale=encoded.scale, zero=zero, axis=None)
