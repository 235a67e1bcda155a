"""After placement: a constant factor behind a linear layer moves into the scales of what the layer multiplies with.

    (x DQ(W, s) + b + m DQ(B, s')) * c   ->   x DQ(W, c s) + c b + m DQ(B, c s')

The factor of an attention, 1 / sqrt(d) on q, so costs nothing: integers stay as they are, a slot's too, and only constants change. It is
left where a branch of the sum has no constant to take it (a float slot input, a residual).
Equal to float rounding; exact where the factor is a power of two.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from quad.compile.passes.edit import Writer, constant, is_op, producer, replace, scalar, sole_reader, static_shape

_MOVES = ("Reshape", "Transpose", "Squeeze", "Unsqueeze")


@dataclass(frozen=True)
class _Place:
    """A constant that takes the factor: operand `index` of `node`."""

    node: ir.Node
    index: int


class FoldScales(ir.passes.InPlacePass):
    """Fold every factor that a linear layer can take."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        folded = [_fold(node) for node in list(model.graph) if is_op(node, "Mul", "Div")]
        return ir.passes.PassResult(model, any(folded))


def _fold(node: ir.Node) -> bool:
    value, factor = _factor(node)
    places = None if value is None else _places(value)
    if value is None or factor is None or not places or static_shape(value) != static_shape(node.outputs[0]):
        return False
    for place in places:
        operand = place.node.inputs[place.index]
        array = constant(operand)
        if array is None:
            return False
        writer = Writer(place.node, f"{node.outputs[0].name}/{place.node.name}/{place.index}")
        place.node.replace_input_with(place.index, writer.constant("scaled", (array * np.float32(factor)).astype(array.dtype)))
    replace(node.outputs[0], value)
    return True


def _factor(node: ir.Node) -> tuple[ir.Value | None, float | None]:
    """The multiplied value, and the positive number it is multiplied with."""
    left, right = node.inputs
    if is_op(node, "Div"):
        divisor = scalar(right)
        return (left, 1 / divisor) if divisor is not None and divisor > 0 else (None, None)
    for value, number in ((left, scalar(right)), (right, scalar(left))):
        if number is not None and number > 0:
            return value, number
    return None, None


def _places(value: ir.Value | None) -> list[_Place] | None:
    """Where the value's factor may go; None where some part of it has no place, or others read it unscaled."""
    node = None if value is None or sole_reader(value) is None else value.producer()
    if node is None:
        return None
    if is_op(node, *_MOVES):
        return _places(node.inputs[0])
    if is_op(node, "Add"):
        operand_places = [
            _place(node, index) if constant(node.inputs[index]) is not None else _places(node.inputs[index]) for index in (0, 1)
        ]
        return None if operand_places[0] is None or operand_places[1] is None else operand_places[0] + operand_places[1]
    if is_op(node, "MatMul"):
        return _place(node, 1) or _place(node, 0)
    if is_op(node, "Conv", "Gemm"):
        bias = _place(node, 2) if len(node.inputs) > 2 and node.inputs[2] is not None else []
        weight = _place(node, 1)
        return None if weight is None or bias is None else weight + bias
    return None


def _place(node: ir.Node, index: int) -> list[_Place] | None:
    """A float constant itself, or the scale of the DQ that makes the operand, from a constant or a slot, for this node alone."""
    value = node.inputs[index]
    array = constant(value)
    if array is not None:
        return [_Place(node, index)] if array.dtype == np.float32 else None
    while (move := producer(value, *_MOVES)) is not None and value is not None and sole_reader(value) is not None:
        value = move.inputs[0]
    scale = producer(value, "DequantizeLinear")
    if scale is None or value is None or sole_reader(value) is None or constant(scale.inputs[1]) is None:
        return None
    source = scale.inputs[0]
    return [_Place(scale, 1)] if source is not None and source.producer() is None else None
