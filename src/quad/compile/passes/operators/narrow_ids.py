"""Token ids of 64 bits -> 32: accelerators index with int32."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from quad.compile.passes.edit import Writer, constant, is_op

_SHAPE_OPS = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Identity", "Flatten", "Slice")
_INDICES = 1  # GatherND's have 64 bits by its definition
_BRANCHES = 1 + 2  # sum of the two operands that Where chooses from


class NarrowIds(ir.passes.InPlacePass):
    """Integer inputs of the graph become int32, and so do their copies of another shape, and constants that they meet."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        wide = [value for value in model.graph.inputs if value.dtype == ir.DataType.INT64]
        for value in wide:
            _narrow(value)
        return ir.passes.PassResult(model, bool(wide))


def _narrow(value: ir.Value) -> None:
    value.type = ir.TensorType(ir.DataType.INT32)  # a new one: clones share the old
    for node, index in value.uses():
        if not _reads_narrow(node, index):
            raise ir.passes.PassError(f"{node.name}: {node.op_type} reads ids of 64 bits")
        if is_op(node, *_SHAPE_OPS, "Where"):
            _narrow(node.outputs[0])


def _reads_narrow(node: ir.Node, index: int) -> bool:
    """Whether a node gives the same of ids of 32 bits; a constant beside them then has 32 too."""
    if is_op(node, *_SHAPE_OPS):
        return index == 0
    if is_op(node, "Gather", "GatherElements"):
        return index == _INDICES
    if is_op(node, "Equal"):
        return _narrow_constant(node, 1 - index)
    return is_op(node, "Where") and _narrow_constant(node, _BRANCHES - index)


def _narrow_constant(node: ir.Node, index: int) -> bool:
    """Give a node a constant of 32 bits in place of one of 64; False where that operand is no constant which fits."""
    array = constant(node.inputs[index])
    if array is None or array.dtype != np.int64 or (array != array.astype(np.int32)).any():
        return False
    node.replace_input_with(index, Writer(node, f"{node.name}/{index}").constant("narrow", array.astype(np.int32)))
    return True
