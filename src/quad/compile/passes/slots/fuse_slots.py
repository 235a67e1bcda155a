"""Gemm(x, A_1), Gemm(x, A_2), ... -> Split(Gemm(x, [A_1; A_2; ...])): slots that read one x share one down-projection.

The q, k and v of an attention read the same tokens, and a rank is far too small to fill a matmul. Stacked by rows, integers stay
integers: one DequantizeLinear with a scale for each row serves all. Runs after `slot_gemm`, which writes slots as Gemm.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from quad.compile.passes.edit import Writer, constant, is_op, replace, static_shape
from quad.compile.passes.integers.dequantized import Dequantized, dequantized, write_dequantized


class FuseSlots(ir.passes.InPlacePass):
    """Stack the A of all slots that read the same value."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        groups = [group for group in _groups(model.graph) if len(group) > 1]
        for group in groups:
            _fuse(group)
        return ir.passes.PassResult(model, bool(groups))

    def ensures(self, model: ir.Model) -> None:
        """No two slots project the same value down on their own."""
        if left := [group[0].name for group in _groups(model.graph) if len(group) > 1]:
            raise ir.passes.PostconditionError(f"{left[0]} has a sibling that reads the same value")


def _groups(graph: ir.Graph) -> list[list[ir.Node]]:
    """Down-projections by what they read, and by element type of the slot."""
    groups: dict[tuple[ir.Value | None, ir.DataType | None], list[ir.Node]] = {}
    for node in graph:
        if _is_product(node) and (slot := _slot(node.inputs[1])) is not None:
            groups.setdefault((node.inputs[0], slot.dtype), []).append(node)
    return list(groups.values())


def _is_product(node: ir.Node) -> bool:
    """x W^T and nothing else: of such a Gemm the rows of W are the channels that come out."""
    flags = {name: attribute.value for name, attribute in node.attributes.items()}
    plain = flags.get("transB", 0) == 1 and flags.get("transA", 0) == 0 and flags.get("alpha", 1.0) == 1.0
    return is_op(node, "Gemm") and plain and all(value is None for value in node.inputs[2:])


def _slot(value: ir.Value | None) -> ir.Value | None:
    """The graph input of a slot: float, or the integers of one scale behind a DQ."""
    encoded = dequantized(value)
    source = value if encoded is None else encoded.integers
    return source if source is not None and source.is_graph_input() and (encoded is None or encoded.axis is None) else None


def _fuse(group: Sequence[ir.Node]) -> None:
    first = group[0]
    writer = Writer(first, str(first.outputs[0].name))
    shapes = [static_shape(node.outputs[0]) or () for node in group]
    ranks = [shape[-1] for shape in shapes]
    slots = [slot for node in group if (slot := _slot(node.inputs[1])) is not None]
    stacked = writer.value("Concat", slots, (sum(ranks), *(static_shape(slots[0]) or ())[1:]), axis=0)
    encoded_slots = [dequantized(node.inputs[1]) for node in group]
    if any(encoded is not None for encoded in encoded_slots):
        rows = np.repeat([_scale(encoded) for encoded in encoded_slots], ranks).astype(np.float32)
        zeros = np.zeros(len(rows), stacked.dtype.numpy() if stacked.dtype else np.int16)
        encoding = Dequantized(integers=stacked, scale=writer.constant("scale", rows), zero=writer.constant("zero_point", zeros), axis=0)
        stacked = write_dequantized(writer, encoding)
    product = writer.value("Gemm", [first.inputs[0], stacked], (shapes[0][0], sum(ranks)), transB=1)
    parts = writer.node("Split", [product, writer.constant("ranks", np.asarray(ranks, np.int64))], *shapes, axis=1).outputs
    for node, part in zip(list(group), parts, strict=True):
        replace(node.outputs[0], part)


def _scale(encoded: Dequantized | None) -> float:
    scale = constant(encoded.scale) if encoded is not None else None
    if scale is None:
        raise ir.passes.PassError("slots of one element type, only some of them with a scale")
    return float(scale.reshape(()))
