"""Rules of operators that work on single numbers, on means and on rows: they leave the order of axes as it is."""

from __future__ import annotations

from math import prod
from typing import Any

import msgspec
import numpy as np
import onnx_ir as ir

from quad.compile.litert.layout import Stored, plain
from quad.compile.litert.lowering import Lowering, constant_name
from quad.compile.passes.edit import axis_of
from quad.core.encoding import Encoding
from quad.core.errors import UnsupportedError, mismatch

_FINE, _CHORD = 16, 128  # bits of a number, and its steps between two places of an operator's table
_UNARY = {"Relu": "RELU", "Sigmoid": "LOGISTIC", "Tanh": "TANH"}
_BROADCAST: dict[str, tuple[str, str, dict[str, Any]]] = {
    # Scales of 16 bits that are all powers of two are another operator, of other bounds; no such flag, one operator for all.
    "Add": ("ADD", "AddOptions", {"potScaleInt16": False}),
    "Sub": ("SUB", "SubOptions", {"potScaleInt16": False}),
    "Mul": ("MUL", "MulOptions", {}),
    "Equal": ("EQUAL", "EqualOptions", {}),
    "Where": ("SELECT_V2", "SelectV2Options", {}),
}


def unary(lowering: Lowering, node: ir.Node) -> None:
    """One operand, one result of its shape."""
    source = lowering.operand(node.inputs[0])
    lowering.builder.operator(_UNARY[node.op_type], [source.index], [lowering.result(node.outputs[0], source.order)])


def gelu(lowering: Lowering, node: ir.Node) -> None:
    """GELU by Erf, or its approximation by tanh where the node says so."""
    source = lowering.operand(node.inputs[0])
    approximate = "approximate" in node.attributes and node.attributes["approximate"].as_string() == "tanh"
    lowering.operator("GELU", [source.index], [lowering.result(node.outputs[0], source.order)], approximate=approximate)


def power(lowering: Lowering, node: ir.Node) -> None:
    """The inverse root, which is a Pow of -0.5; of 16 bits near at every step of its input."""
    exponent = lowering.constant(node.inputs[1])
    if exponent is None or exponent[0].size != 1 or float(exponent[0].reshape(())) != -0.5:
        raise UnsupportedError(mismatch(f"{node.name}", "a Pow of -0.5", "another exponent", "report it with the model's name"))
    source = lowering.operand(node.inputs[0])
    output, encoding = lowering.result(node.outputs[0], source.order), lowering.encoding(source.index)
    if encoding is None or encoding.bits != _FINE:
        lowering.builder.operator("RSQRT", [source.index], [output])
    else:
        _near_root(lowering, source, encoding, output)


def _near_root(lowering: Lowering, source: Stored, encoding: Encoding, output: int) -> None:
    """LiteRT takes a root of 16 bits by chords of 128 steps, and along the first few the function falls too fast for that.

    So it is taken once more of the same value in steps 128 times as fine, which cut off all beyond the first two chords. A chord lies above
    the function, and what is cut off gives a larger root: the lesser of the two is the nearer. It is `a - relu(a - b)`, since Qualcomm's
    plugin leaves a MINIMUM of 16 bits to the CPU.
    """
    fine = lowering.requantized(source, msgspec.structs.replace(encoding, scale=(encoding.scale[0] / _CHORD,)))
    shape = lowering.builder.tensors[output].shape
    coarse_root, fine_root, over, excess = (lowering.temporary(output, label, shape) for label in ("coarse", "fine", "over", "excess"))
    lowering.builder.operator("RSQRT", [source.index], [coarse_root])
    lowering.builder.operator("RSQRT", [fine.index], [fine_root])
    lowering.operator("SUB", [coarse_root, fine_root], [over], potScaleInt16=False)
    lowering.builder.operator("RELU", [over], [excess])
    lowering.operator("SUB", [coarse_root, excess], [output], potScaleInt16=False)


def softmax(lowering: Lowering, node: ir.Node) -> None:
    """Over the axis that lies last in memory."""
    source = lowering.operand(node.inputs[0])
    rank = len(source.order)
    if source.order[-1] != axis_of(node, rank, -1):
        source = Stored(lowering.in_order(source, plain(rank)), plain(rank))
    if source.order[-1] != axis_of(node, rank, -1):
        raise UnsupportedError(mismatch(f"{node.name}", "a Softmax over the last axis", "another", "report it with the model's name"))
    lowering.operator("SOFTMAX", [source.index], [lowering.result(node.outputs[0], source.order)], beta=1.0)


def mean(lowering: Lowering, node: ir.Node) -> None:
    """A mean over some axes, which stay with length 1."""
    axes = lowering.constant(node.inputs[1] if len(node.inputs) > 1 else None)
    if axes is None or ("keepdims" in node.attributes and not node.attributes["keepdims"].as_int()):
        raise UnsupportedError(mismatch(f"{node.name}", "a mean that keeps its axes", "another", "report it with the model's name"))
    source = lowering.operand(node.inputs[0])
    rank = len(source.order)
    places = sorted(source.order.index(int(axis) % rank) for axis in axes[0].reshape(-1))
    output = lowering.result(node.outputs[0], source.order)
    lowering.operator("MEAN", [source.index, lowering.integers("axes", places)], [output], "ReducerOptions", keepDims=True)


def cast(lowering: Lowering, node: ir.Node) -> None:
    """The same numbers in another element type; a float that is read as integers of an encoding is quantized behind it."""
    source = lowering.operand(node.inputs[0])
    output = lowering.result(node.outputs[0], source.order)
    written = lowering.builder.tensors[output]
    whole = output if written.encoding is None else lowering.builder.tensor(f"{written.name}/whole", written.shape, np.float32)
    lowering.builder.operator("CAST", [source.index], [whole])
    if whole != output:
        lowering.operator("QUANTIZE", [whole], [output])


def broadcast(lowering: Lowering, node: ir.Node) -> None:
    """Operands that are broadcast against each other, in the order of the first that has all axes."""
    kind, table, options = _BROADCAST[node.op_type]
    rank = len(lowering.shape(node.outputs[0]))
    computed = [value for value in node.inputs if lowering.constant(value) is None]
    full = sorted((value for value in computed if len(lowering.shape(value)) == rank), key=lambda value: -prod(lowering.shape(value)))
    order = lowering.operand(full[0]).order if full else plain(rank)
    inputs = [_broadcast(lowering, value, order) for value in node.inputs]
    lowering.operator(kind, inputs, [lowering.result(node.outputs[0], order)], table, **options)


def _broadcast(lowering: Lowering, value: ir.Value | None, order: tuple[int, ...]) -> int:
    shape = lowering.shape(value)
    padded = (*[1] * (len(order) - len(shape)), *shape)
    known = lowering.constant(value)
    if known is not None:
        array, encoding = known
        if array.size == 1:
            return lowering.builder.constant(constant_name(value), array.reshape(1), encoding)
        return lowering.builder.constant(constant_name(value), np.transpose(array.reshape(padded), order), encoding)
    source = lowering.operand(value)
    if len(shape) < len(order):
        source = Stored(lowering.reshaped(lowering.in_order(source, plain(len(shape))), padded, "broadcast"), plain(len(order)))
    return lowering.in_order(source, order)
