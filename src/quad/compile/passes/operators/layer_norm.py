"""LayerNormalization over the last axis -> mean, difference, mean of squares, root, product: for targets without the operator.

    d = x - mean(x),   y = d / sqrt(mean(d d) + epsilon) * gamma + beta

No operator of it broadcasts a square or takes a power; vendors' plugins take it whole.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from quad.compile.passes.edit import Writer, axis_of, is_op, replace, static_shape


class DecomposeLayerNorm(ir.passes.InPlacePass):
    """Spell every LayerNormalization over the last axis."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        norms = [node for node in model.graph if _is_layer_norm(node)]
        for node in norms:
            _spell(node)
        return ir.passes.PassResult(model, bool(norms))

    def ensures(self, model: ir.Model) -> None:
        """None is left."""
        if left := next((node for node in model.graph if _is_layer_norm(node)), None):
            raise ir.passes.PostconditionError(f"{left.name} is still a LayerNormalization")


def _is_layer_norm(node: ir.Node) -> bool:
    shape = static_shape(node.inputs[0]) if is_op(node, "LayerNormalization") else None
    statistics_read = any(output.uses() or output.is_graph_output() for output in node.outputs[1:])
    return shape is not None and axis_of(node, len(shape), -1) == len(shape) - 1 and not statistics_read


def _spell(node: ir.Node) -> None:
    x, gamma, beta = (*node.inputs, None)[:3]
    if x is None:
        return
    shape = static_shape(x) or ()
    column = (*shape[:-1], 1)
    writer = Writer(node, str(node.outputs[0].name))
    axes = writer.constant("axes", np.array([-1], np.int64))
    epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5

    def mean(value: ir.Value) -> ir.Value:
        return writer.value("ReduceMean", [value, axes], column, keepdims=1)

    difference = writer.value("Sub", [x, mean(x)], shape)
    variance = mean(writer.value("Mul", [difference, difference], shape))
    moved = writer.value("Add", [variance, writer.constant("epsilon", np.array(epsilon, np.float32))], column)
    root = writer.value("Reciprocal", [writer.value("Sqrt", [moved], column)], column)
    y = writer.value("Mul", [difference, root], shape)
    if gamma is not None:
        y = writer.value("Mul", [y, gamma], shape)
    if beta is not None:
        y = writer.value("Add", [y, beta], shape)
    replace(node.outputs[0], y)
