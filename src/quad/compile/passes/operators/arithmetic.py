"""Arithmetic with constants in its plainest form: x/1 and x*1 go, x/c is x*(1/c), a bias of zeros is none."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from quad.compile.passes.edit import Writer, constant, is_op, replace, static_shape

_BIASED = ("Conv", "Gemm")
_BIAS = 2


class PlainArithmetic(ir.passes.InPlacePass):
    """Rewrite divisions by constants, products with one and biases of zeros."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        changed = [self._rewrite(node) for node in list(model.graph)]
        return ir.passes.PassResult(model, any(changed))

    def ensures(self, model: ir.Model) -> None:
        """No division by a float constant is left."""
        if left := [node.name for node in model.graph if is_op(node, "Div") and _float_constant(node.inputs[1]) is not None]:
            raise ir.passes.PostconditionError(f"{left[0]} still divides by a constant")

    @staticmethod
    def _rewrite(node: ir.Node) -> bool:
        if is_op(node, *_BIASED) and len(node.inputs) > _BIAS:
            bias = constant(node.inputs[_BIAS])
            if bias is not None and not bias.any():
                node.resize_inputs(_BIAS)
                return True
        x, factor = (node.inputs[0], _float_constant(node.inputs[1])) if is_op(node, "Div", "Mul") else (None, None)
        if x is None or factor is None:
            return False
        output = node.outputs[0]
        if (factor == 1).all() and static_shape(x) is not None and static_shape(x) == static_shape(output) and not x.is_graph_input():
            replace(output, x)
            return True
        if is_op(node, "Div"):
            writer = Writer(node, str(output.name))
            inverse = writer.constant("inverse", (1.0 / factor.astype(np.float64)).astype(factor.dtype))
            product = writer.value("Mul", [x, inverse], static_shape(output) or ())
            replace(output, product)
            return True
        return False


def _float_constant(value: ir.Value | None) -> NDArray[Any] | None:
    """An integer has no inverse."""
    array = constant(value)
    return array if array is not None and array.dtype.kind == "f" else None
