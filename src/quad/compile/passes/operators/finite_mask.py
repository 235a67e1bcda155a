"""Attention masks of minus infinity -> the least number that still masks: integers have to hold the scores beside it.

`softmax` of a score 60 below the largest is under 2^-86: nothing of it reaches 16 bits.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from quad.compile.passes.edit import constant, is_op
from quad.compile.passes.integers.remove_sites import is_site

_NEVER = -1e9  # no model's finite bias is below this
MASKED = -60.0


class FiniteMask(ir.passes.InPlacePass):
    """Clip constants that are added to scores of a Softmax, and to nothing else."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        changed = [_clip(value) for node in model.graph if _is_scores(node) for value in node.inputs]
        return ir.passes.PassResult(model, any(changed))


def _is_scores(node: ir.Node) -> bool:
    """A sum that only Softmaxes read, through Sites or not."""
    return is_op(node, "Add") and _for_softmax(node.outputs[0])


def _for_softmax(value: ir.Value) -> bool:
    readers = value.consumers()
    return bool(readers) and all(_for_softmax(node.outputs[0]) if is_site(node) else is_op(node, "Softmax") for node in readers)


def _clip(value: ir.Value | None) -> bool:
    array = constant(value)
    if value is None or array is None or array.dtype.kind != "f" or not (array < _NEVER).any():
        return False
    if not all(_is_scores(node) for node in value.consumers()):
        return False
    value.const_value = ir.tensor(np.maximum(array, np.float32(MASKED)), name=value.name)
    return True
