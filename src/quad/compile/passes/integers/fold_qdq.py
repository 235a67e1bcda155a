"""After placement: a Q that undoes the DQ above it goes.

1. Q(DQ(q))        -> q           same scale, zero point and element type: exact, for integers come back as they were
2. Q(f(DQ(q)))     -> f(q)        f moves numbers only (Reshape, Transpose, Slice, ...): the integers are moved instead
3. f(DQ(q)) where f(x) is all that reads the DQ stays as it is: engines want a DQ before every operator

Per-tensor encodings only.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from quad.compile.passes.edit import Writer, constant, is_op, producer, replace, static_shape

_MOVES = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice")


class FoldQdq(ir.passes.InPlacePass):
    """Take away every quantization that changes nothing."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        folded = [_fold(node) for node in list(model.graph) if is_op(node, "QuantizeLinear")]
        return ir.passes.PassResult(model, any(folded))

    def ensures(self, model: ir.Model) -> None:
        """No Q reads its own DQ."""
        for node in model.graph:
            if is_op(node, "QuantizeLinear") and _undone(node)[0] is not None:
                raise ir.passes.PostconditionError(f"{node.name} quantizes anew what was quantized so")


def _fold(quantize: ir.Node) -> bool:
    dequantize, moves = _undone(quantize)
    if dequantize is None or dequantize.inputs[0] is None:
        return False
    value = dequantize.inputs[0]
    for index, move in enumerate(reversed(moves)):
        writer = Writer(quantize, f"{quantize.outputs[0].name}/moved_{index}")
        moved = writer.like(move, [value, *move.inputs[1:]], static_shape(move.outputs[0]) or ())
        moved.outputs[0].type = None if value.dtype is None else ir.TensorType(value.dtype)
        value = moved.outputs[0]
    replace(quantize.outputs[0], value)
    return True


def _undone(quantize: ir.Node) -> tuple[ir.Node | None, tuple[ir.Node, ...]]:
    """The DQ of the same encoding above a Q, and the moves between, from below; None where there is none."""
    moves: list[ir.Node] = []
    value = quantize.inputs[0]
    while (move := producer(value, *_MOVES)) is not None:
        moves.append(move)
        value = move.inputs[0]
    above = producer(value, "DequantizeLinear")
    return (above, tuple(moves)) if above is not None and _same_encoding(above, quantize) else (None, ())


def _same_encoding(dequantize: ir.Node, quantize: ir.Node) -> bool:
    if len(dequantize.inputs) != 3 or len(quantize.inputs) != 3:
        return False
    for first, second in zip(dequantize.inputs[1:], quantize.inputs[1:], strict=True):
        left, right = constant(first), constant(second)
        if left is None or right is None or left.size != 1 or left.dtype != right.dtype or not np.array_equal(left, right):
            return False
    return True
