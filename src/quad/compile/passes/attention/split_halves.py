"""Split(x W + b) -> x W_1 + b_1, x W_2 + b_2: a gated unit's two halves come out of their own matmuls, so that nothing is copied.

The matmul of a GEGLU is the widest activation of a transformer block; cutting its constants costs nothing at run time.
"""

from __future__ import annotations

import onnx_ir as ir

from quad.compile.passes.edit import Writer, axis_of, constant, is_op, producer, replace, sole_reader, static_shape
from quad.compile.passes.integers.dequantized import cut


class SplitHalves(ir.passes.InPlacePass):
    """Divide every linear layer whose output is all split along its channels."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        divided = [_divide(node) for node in list(model.graph) if is_op(node, "Split")]
        return ir.passes.PassResult(model, any(divided))


def _divide(split: ir.Node) -> bool:
    add = producer(split.inputs[0], "Add")
    if add is None or sole_reader(add.outputs[0]) is not split or any(constant(value) is None for value in add.inputs[1:]):
        return False
    matmul, bias = producer(add.inputs[0], "MatMul"), add.inputs[1]
    shape = static_shape(add.outputs[0])
    if matmul is None or bias is None or shape is None or sole_reader(matmul.outputs[0]) is not add:
        return False
    output_shapes = [static_shape(output) for output in split.outputs]
    weight, last = matmul.inputs[1], axis_of(split, len(shape), 0) == len(shape) - 1
    shapes = [part for part in output_shapes if part is not None]
    fits = len(static_shape(weight) or ()) == 2 and static_shape(bias) == shape[-1:]
    if weight is None or not last or not fits or len(shapes) != len(output_shapes):
        return False
    writer = Writer(matmul, str(add.outputs[0].name))
    sizes = [part[-1] for part in shapes]
    weights, biases = cut(writer, weight, 1, sizes), cut(writer, bias, 0, sizes)
    if weights is None or biases is None:
        return False
    halves = [
        writer.value("Add", [writer.value("MatMul", [matmul.inputs[0], half_weight], part), offset], part)
        for part, half_weight, offset in zip(shapes, weights, biases, strict=True)
    ]
    for output, half in zip(list(split.outputs), halves, strict=True):
        replace(output, half)
    return True
