"""Token ids of 64 bits -> 32: accelerators index with int32."""

from __future__ import annotations

import onnx_ir as ir

from quad.compile.passes.edit import is_op

_SHAPE_OPS = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Identity", "Flatten", "Slice")
_INDICES = 1  # GatherND's have 64 bits by its definition


class NarrowIds(ir.passes.InPlacePass):
    """Integer inputs of the graph, and what only changes their shape, become int32."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        wide = [value for value in model.graph.inputs if value.dtype == ir.DataType.INT64]
        for value in wide:
            _narrow(value)
        return ir.passes.PassResult(model, bool(wide))


def _narrow(value: ir.Value) -> None:
    value.type = ir.TensorType(ir.DataType.INT32)  # a new one: clones share the old
    for node, index in value.uses():
        if is_op(node, *_SHAPE_OPS) and index == 0:
            _narrow(node.outputs[0])
        elif not (is_op(node, "Gather", "GatherElements") and index == _INDICES):
            raise ir.passes.PassError(f"{node.name}: {node.op_type} reads ids of 64 bits")
