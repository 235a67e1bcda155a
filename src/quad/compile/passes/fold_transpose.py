"""Transpose(weight) -> the weight stored transposed, its name kept and the permutation remembered.

torch writes a Linear as MatMul(x, Transpose(W)). Engines want the constant itself as the second operand (per channel axis 1), and
placement must still find W by its parameter name and know along which axis its channels now lie.
"""

from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir

_PERMUTATION = "quad.permutation"


def weight_permutation(weight: ir.Value) -> tuple[int, ...] | None:
    """How the stored axes follow from the parameter's: stored axis k is parameter axis p[k]; None where they are the same."""
    text = weight.metadata_props.get(_PERMUTATION)
    return None if text is None else tuple(json.loads(text))


class FoldWeightTranspose(ir.passes.InPlacePass):
    """Store a weight transposed where all its readers are one and the same Transpose."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        folded = [self._fold(weight) for weight in list(model.graph.initializers.values())]
        return ir.passes.PassResult(model, any(folded))

    def ensures(self, model: ir.Model) -> None:
        """No weight is left with a single reader that transposes it."""
        for weight in model.graph.initializers.values():
            readers = weight.consumers()
            if len(readers) == 1 and readers[0].op_type == "Transpose" and weight_permutation(weight) is None:
                raise ir.passes.PostconditionError(f"{weight.name} is still transposed in the graph")

    @staticmethod
    def _fold(weight: ir.Value) -> bool:
        readers = list(weight.consumers())
        if not readers or weight.const_value is None or any(node.op_type != "Transpose" or node.domain for node in readers):
            return False
        perms = {tuple(node.attributes["perm"].as_ints()) for node in readers if "perm" in node.attributes}
        if len(perms) != 1 or any("perm" not in node.attributes or node.outputs[0].is_graph_output() for node in readers):
            return False
        perm = perms.pop()
        array = np.ascontiguousarray(weight.const_value.numpy().transpose(perm))
        weight.const_value = ir.tensor(array, name=weight.name)
        weight.shape = ir.Shape(array.shape)
        weight.metadata_props[_PERMUTATION] = json.dumps(perm)
        for node in readers:
            node.outputs[0].replace_all_uses_with(weight)
            node.graph.remove(node, safe=True)  # type: ignore[union-attr]
        return True
