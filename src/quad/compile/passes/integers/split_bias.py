"""A bias whose step `s_x s_w` is too fine for 32 bits -> an Add behind its layer: so it is with 16-bit weights."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from quad.compile.passes.edit import Writer, constant, is_op, replace, static_shape

_BIAS = 2


class SplitBias(ir.passes.InPlacePass):
    """Take the bias out of the layers with these weights.

    Args:
        weights: names of constants.
    """

    def __init__(self, weights: Collection[str]) -> None:
        self._weights = frozenset(weights)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        layers = [node for node in model.graph if is_op(node, "Conv", "Gemm") and self._concerns(node)]
        for node in layers:
            self._split(node)
        return ir.passes.PassResult(model, bool(layers))

    def _concerns(self, node: ir.Node) -> bool:
        weight, *bias = node.inputs[1:]
        return any(value is not None for value in bias) and weight is not None and weight.name in self._weights

    @staticmethod
    def _split(node: ir.Node) -> None:
        bias = constant(node.inputs[_BIAS])
        shape = static_shape(node.outputs[0])
        if bias is None or shape is None:
            raise ir.passes.PassError(f"{node.name}: a computed bias")
        writer = Writer(node, str(node.outputs[0].name))
        unbiased = writer.like(node, node.inputs[:_BIAS], shape)
        if is_op(node, "Conv"):
            bias = bias.reshape(-1, *[1] * (len(shape) - 2))
        elif "beta" in node.attributes:
            bias = bias * bias.dtype.type(node.attributes["beta"].as_float())
        replace(node.outputs[0], writer.value("Add", [unbiased.outputs[0], writer.constant("bias", bias)], shape))
