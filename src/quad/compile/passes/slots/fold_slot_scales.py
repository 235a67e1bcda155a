"""(m * s) DQ(B, step)  ->  m DQ(B, s * step): a normalised slot's scales go where its B becomes floats anyway.

The scales of all slots come as one vector, which a Split hands out. It is multiplied with the steps of all B once, before the Split, so
that no linear slot has a node more than one of searched ranges. A float B is left alone, and so is a convolution: OpenVINO 2026.4 does not
load a 1x1 convolution whose weight is scaled by a computed value. Equal to float rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from quad.compile.passes.edit import Writer, is_op, producer, replace, scalar, sole_reader, static_shape

_CHANNELS = 1  # the axis of rank channels in B


@dataclass(frozen=True, kw_only=True)
class _Branch:
    """One slot's scaling.

    Args:
        scaling: the Mul of `A x` and the scales.
        mid: `A x`.
        scales: the slot's part of the vector, `(rank,)`.
        up: the DequantizeLinear of B.
        step: its scale.
        reader: of what it gives.
    """

    scaling: ir.Node
    mid: ir.Value
    scales: ir.Value
    up: ir.Node
    step: float
    reader: ir.Node


class FoldSlotScales(ir.passes.InPlacePass):
    """Fold the scales of every linear slot that has an integer B."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        folded = [_fold(node) for node in list(model.graph) if is_op(node, "Split")]
        return ir.passes.PassResult(model, any(folded))


def _fold(split: ir.Node) -> bool:
    branches = [_branch(part) for part in split.outputs]
    source, slots = split.inputs[0], [branch for branch in branches if branch is not None]
    if source is None or not source.is_graph_input() or not slots:
        return False
    ranks = [(static_shape(part) or (0,))[0] for part in split.outputs]
    writer = Writer(split, f"{source.name}/steps")
    steps = writer.constant("steps", np.repeat([1.0 if branch is None else branch.step for branch in branches], ranks).astype(np.float32))
    split.replace_input_with(0, writer.value("Mul", [source, steps], (sum(ranks),)))
    for branch in slots:
        _rewrite(branch)
    return True


def _branch(scales: ir.Value) -> _Branch | None:
    """The one branch that reads these scales; None where it is not of this form."""
    reader = sole_reader(scales)
    if reader is None or not is_op(reader, "Mul"):
        return None
    mid = next((value for value in reader.inputs if value is not None and value is not scales), None)
    product = sole_reader(reader.outputs[0])
    if mid is None or product is None or not is_op(product, "MatMul", "Gemm") or product.inputs[0] is not reader.outputs[0]:
        return None
    up = product.inputs[1]
    turn = producer(up, "Transpose")
    decoded = producer(up if turn is None else turn.inputs[0], "DequantizeLinear")
    step = None if decoded is None else scalar(decoded.inputs[1])
    up_reader = None if decoded is None else sole_reader(decoded.outputs[0])
    if decoded is None or step is None or up_reader is None:
        return None
    return _Branch(scaling=reader, mid=mid, scales=scales, up=decoded, step=step, reader=up_reader)


def _rewrite(branch: _Branch) -> None:
    """B's DQ gets the scales, one for each rank channel, and `A x` goes on as it is."""
    integers = branch.up.inputs[0]
    writer = Writer(branch.reader, f"{branch.up.outputs[0].name}/scaled")
    decoded = writer.value("DequantizeLinear", [integers, branch.scales], static_shape(integers) or (), axis=_CHANNELS)
    decoded.type = ir.TensorType(ir.DataType.FLOAT)
    replace(branch.up.outputs[0], decoded)
    replace(branch.scaling.outputs[0], branch.mid)
