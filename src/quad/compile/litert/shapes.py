"""Rules of operators that move numbers and compute none: their input's encoding is their output's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from quad.compile.litert.layout import Stored, channels_last, laid_out, plain, reshaped, turned
from quad.compile.litert.lowering import Lowering
from quad.compile.passes.edit import axis_of, perm_of
from quad.core.errors import UnsupportedError, mismatch


def _source(lowering: Lowering, node: ir.Node, index: int = 0) -> Stored:
    """An operand in the encoding of the node's first output."""
    return lowering.requantized(lowering.operand(node.inputs[index]), lowering.result_type(node.outputs[0])[1])


def reshape(lowering: Lowering, node: ir.Node) -> None:
    """Reshape, Squeeze, Unsqueeze, Flatten: where memory can stay, the order of axes goes with it."""
    source = _source(lowering, node)
    before, after = lowering.shape(node.inputs[0]), lowering.shape(node.outputs[0])
    order = reshaped(before, source.order, after)
    if order is None:
        source = Stored(lowering.in_order(source, plain(len(before))), plain(len(before)))
        order = plain(len(after))
    shape = laid_out(after, order)
    if lowering.builder.tensors[source.index].shape == shape:
        lowering.alias(node.outputs[0], Stored(source.index, order))
        return
    output = lowering.result(node.outputs[0], order)
    lowering.operator("RESHAPE", [source.index, lowering.integers("shape", shape)], [output], newShape=list(shape))


def transpose(lowering: Lowering, node: ir.Node) -> None:
    """Nothing moves until somebody wants a certain order."""
    source = _source(lowering, node)
    lowering.alias(node.outputs[0], Stored(source.index, turned(source.order, perm_of(node))))


def identity(lowering: Lowering, node: ir.Node) -> None:
    """The same tensor."""
    lowering.alias(node.outputs[0], _source(lowering, node))


def concat(lowering: Lowering, node: ir.Node) -> None:
    """All parts in the encoding of the whole and in the order of the first."""
    parts = [_source(lowering, node, index) for index in range(len(node.inputs))]
    order = parts[0].order
    output = lowering.result(node.outputs[0], order)
    inputs = [lowering.in_order(part, order) for part in parts]
    axis = order.index(axis_of(node, len(order), 0))
    lowering.operator("CONCATENATION", inputs, [output], axis=axis)


def split(lowering: Lowering, node: ir.Node) -> None:
    """A slice for each part."""
    axis = axis_of(node, len(lowering.shape(node.inputs[0])), 0)
    start = 0
    for output in node.outputs:
        length = lowering.shape(output)[axis]
        _slice(lowering, node, output, (_Cut(axis, start, length),))
        start += length


def slices(lowering: Lowering, node: ir.Node) -> None:
    """Slice in steps of 1."""
    starts, ends, axes, steps = (_numbers(lowering, node, index) for index in range(1, 5))
    shape = lowering.shape(node.inputs[0])
    if starts is None or ends is None or set(steps or [1]) != {1}:
        raise UnsupportedError(mismatch(f"{node.name}", "a Slice in steps of 1", "another", "report it with the model's name"))
    cuts = []
    for axis, start, end in zip(axes or range(len(starts)), starts, ends, strict=True):
        first, last, _ = slice(start, end).indices(shape[axis])
        cuts.append(_Cut(axis % len(shape), first, last - first))
    _slice(lowering, node, node.outputs[0], cuts)


@dataclass(frozen=True)
class _Cut:
    """The part of one axis that stays."""

    axis: int
    start: int
    length: int


def _slice(lowering: Lowering, node: ir.Node, output: ir.Value, cuts: Sequence[_Cut]) -> None:
    source = lowering.requantized(lowering.operand(node.inputs[0]), lowering.result_type(output)[1])
    shape = lowering.builder.tensors[source.index].shape
    begin, size = [0] * len(shape), list(shape)
    for cut in cuts:
        place = source.order.index(cut.axis)
        begin[place], size[place] = cut.start, cut.length
    inputs = [source.index, lowering.integers("begin", begin), lowering.integers("size", size)]
    lowering.operator("SLICE", inputs, [lowering.result(output, source.order)])


def _numbers(lowering: Lowering, node: ir.Node, index: int) -> list[int] | None:
    known = lowering.constant(node.inputs[index]) if index < len(node.inputs) and node.inputs[index] is not None else None
    return None if known is None else [int(n) for n in known[0].reshape(-1)]


def gather(lowering: Lowering, node: ir.Node) -> None:
    """Rows of a table."""
    table, rows = lowering.operand(node.inputs[0]), lowering.operand(node.inputs[1])
    if axis_of(node, len(table.order), 0) != 0 or not (table.is_plain and rows.is_plain):
        raise UnsupportedError(mismatch(f"{node.name}", "a Gather of rows", "another axis", "report it with the model's name"))
    table = lowering.requantized(table, lowering.result_type(node.outputs[0])[1])
    output = lowering.result(node.outputs[0], plain(len(lowering.shape(node.outputs[0]))))
    lowering.operator("GATHER", [table.index, rows.index], [output], axis=0)


def resize(lowering: Lowering, node: ir.Node) -> None:
    """Nearest, by whole factors: every row of channels beside itself, then every line below itself."""
    before, after = lowering.shape(node.inputs[0]), lowering.shape(node.outputs[0])
    mode = node.attributes["mode"].as_string() if "mode" in node.attributes else "nearest"
    if mode != "nearest" or len(before) != 4 or before[:2] != after[:2] or any(n % m for n, m in zip(after, before, strict=True)):
        raise UnsupportedError(mismatch(f"{node.name}", "nearest by whole factors", mode, "report it with the model's name"))
    batch, channels, height, width = before
    rows, columns = after[2] // height, after[3] // width
    order = channels_last(4)
    source = lowering.in_order(_source(lowering, node), order)
    output = lowering.result(node.outputs[0], order)
    wide = lowering.temporary(output, "wide", (batch, height, width, columns * channels))
    lowering.operator("CONCATENATION", [source] * columns, [wide], axis=3)
    lines = lowering.reshaped(wide, (batch, height, 1, after[3] * channels), "lines")
    tall = lowering.temporary(output, "tall", (batch, height, 1, rows * after[3] * channels))
    lowering.operator("CONCATENATION", [lines] * rows, [tall], axis=3)
    shape = laid_out(after, order)
    lowering.operator("RESHAPE", [tall, lowering.integers("shape", shape)], [output], newShape=list(shape))


def pad(lowering: Lowering, node: ir.Node) -> None:
    """With zeros."""
    mode = node.attributes["mode"].as_string() if "mode" in node.attributes else "constant"
    pads, value = _numbers(lowering, node, 1), lowering.constant(node.inputs[2]) if len(node.inputs) > 2 else None
    source, of_all = _source(lowering, node), pads is not None and len(pads) == 2 * len(lowering.shape(node.inputs[0]))
    if mode != "constant" or pads is None or not of_all or min(pads) < 0 or (value is not None and np.any(value[0])):
        raise UnsupportedError(mismatch(f"{node.name}", "a Pad with zeros", mode, "report it with the model's name"))
    rank = len(source.order)
    table = np.array([(pads[axis], pads[axis + rank]) for axis in source.order], np.int32)
    output = lowering.result(node.outputs[0], source.order)
    lowering.operator("PAD", [source.index, lowering.builder.constant("pads", table)], [output])
