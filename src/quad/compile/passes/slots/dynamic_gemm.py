"""Gemm with a computed second operand -> Transpose, MatMul: what a slot brings is an operand of a matmul, not a layer's weight."""

from __future__ import annotations

import onnx_ir as ir

from quad.compile.passes.edit import Writer, constant, is_op, replace, static_shape

_FACTORS = {"alpha": 1.0, "beta": 1.0}


class DynamicGemm(ir.passes.InPlacePass):
    """Rewrite every Gemm whose B is no constant; alpha and beta are 1, as torch writes them."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        gemms = [node for node in model.graph if is_op(node, "Gemm") and constant(node.inputs[1]) is None]
        for node in gemms:
            self._rewrite(node)
        return ir.passes.PassResult(model, bool(gemms))

    def ensures(self, model: ir.Model) -> None:
        """Every Gemm has a constant weight."""
        if left := [node.name for node in model.graph if is_op(node, "Gemm") and constant(node.inputs[1]) is None]:
            raise ir.passes.PostconditionError(f"{left[0]} still multiplies two computed values")

    @staticmethod
    def _rewrite(node: ir.Node) -> None:
        x, weight, *bias = node.inputs
        if x is None or weight is None or any(node.attributes[k].as_float() != v for k, v in _FACTORS.items() if k in node.attributes):
            raise ir.passes.PassError(f"{node.name}: a Gemm with factors")
        output = node.outputs[0]
        writer = Writer(node, str(output.name))
        flags = {name: name in node.attributes and node.attributes[name].as_int() for name in ("transA", "transB")}
        first = writer.transpose(x, (1, 0)) if flags["transA"] else x
        second = writer.transpose(weight, (1, 0)) if flags["transB"] else weight
        product = writer.value("MatMul", [first, second], static_shape(output) or ())
        if bias and bias[0] is not None:
            product = writer.value("Add", [product, bias[0]], static_shape(output) or ())
        replace(output, product)
