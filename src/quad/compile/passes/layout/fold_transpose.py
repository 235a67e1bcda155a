"""Transpose(weight) -> the weight stored transposed, its name kept and the permutation remembered.

torch writes a Linear as MatMul(x, Transpose(W)). Engines want the constant itself as the second operand (per channel axis 1), and
placement must still find W by its parameter name and know along which axis its channels now lie.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from quad.compile.lazy_tensor import lazy_tensor

Permutation = tuple[int | None, ...]

_PERMUTATION = "quad.permutation"


def weight_permutation(weight: ir.Value) -> Permutation | None:
    """How the stored axes follow from the parameter's: stored axis k is parameter axis p[k], or a new one of length 1 where p[k] is None.

    None where the weight is stored as the parameter is.
    """
    text = weight.metadata_props.get(_PERMUTATION)
    return None if text is None else tuple(json.loads(text))


def as_parameter(stored: NDArray[Any], permutation: Permutation) -> NDArray[Any]:
    """A stored array in the parameter's own axes."""
    axes = [k for k in permutation if k is not None]
    return stored.reshape([n for n, k in zip(stored.shape, permutation, strict=True) if k is not None]).transpose(np.argsort(axes))


def as_stored(parameter: NDArray[Any], permutation: Permutation) -> NDArray[Any]:
    """An array of the parameter's axes as it is stored, contiguous."""
    turned = parameter.transpose([k for k in permutation if k is not None])
    return np.ascontiguousarray(np.expand_dims(turned, [axis for axis, k in enumerate(permutation) if k is None]))


def restore_weight(weight: ir.Value, permutation: Sequence[int | None]) -> None:
    """Store a weight's axes anew, in place: its axis k becomes what was axis `permutation[k]`, or a new one of length 1 for None."""
    if weight.const_value is None:
        raise ir.passes.PassError(f"{weight.name}: not a constant")
    stored, axes = weight.const_value, tuple(permutation)
    before = weight_permutation(weight)
    now = [k if k is None or before is None else before[k] for k in permutation]
    lengths = stored.shape.numpy()
    shape = tuple(1 if k is None else lengths[k] for k in axes)
    if isinstance(stored, ir.LazyTensor):
        weight.const_value = lazy_tensor(lambda: as_stored(stored.numpy(), axes), stored.dtype, shape, weight.name)
    else:
        weight.const_value = ir.tensor(as_stored(stored.numpy(), axes), name=weight.name)
    weight.shape = ir.Shape(shape)
    weight.metadata_props[_PERMUTATION] = json.dumps(now)


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
        restore_weight(weight, perms.pop())
        for node in readers:
            node.outputs[0].replace_all_uses_with(weight)
            node.graph.remove(node, safe=True)  # type: ignore[union-attr]
        return True
