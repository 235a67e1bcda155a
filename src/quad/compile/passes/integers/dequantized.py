"""Values behind a DequantizeLinear: what they were made of, and constants among them that are cut into parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from quad.compile.passes.edit import Writer, constant, producer, static_shape


@dataclass(frozen=True)
class Dequantized:
    """`scale (integers - zero)`.

    Args:
        axis: of the channels that each have a scale, None per tensor.
    """

    integers: ir.Value
    scale: ir.Value
    zero: ir.Value | None
    axis: int | None


def dequantized(value: ir.Value | None, dtype: ir.DataType | None = None) -> Dequantized | None:
    """What a value was made of; None where it is no DQ of constant encoding, or its integers are not of this element type."""
    node = producer(value, "DequantizeLinear")
    if node is None or node.inputs[0] is None or constant(node.inputs[1]) is None:
        return None
    integers, scale, *rest = node.inputs
    if integers is None or scale is None or (dtype is not None and integers.dtype != dtype):
        return None
    axis = (node.attributes["axis"].as_int() if "axis" in node.attributes else 1) if static_shape(scale) else None
    return Dequantized(integers, scale, rest[0] if rest else None, axis)


def write_dequantized(writer: Writer, made: Dequantized) -> ir.Value:
    """A DQ of these."""
    inputs = [made.integers, made.scale] if made.zero is None else [made.integers, made.scale, made.zero]
    node = writer.node("DequantizeLinear", inputs, static_shape(made.integers) or (), **({} if made.axis is None else {"axis": made.axis}))
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    return node.outputs[0]


def cut(writer: Writer, value: ir.Value, axis: int, sizes: Sequence[int]) -> list[ir.Value] | None:
    """A constant, float or dequantized, cut along an axis into parts of the same kind; None where it is computed.

    The integers stay as they are: only which of them lie together changes.
    """
    made = dequantized(value)
    array = constant(value if made is None else made.integers)
    if array is None:
        return None
    places = np.cumsum(sizes)[:-1]
    parts = [writer.constant("part", np.ascontiguousarray(part)) for part in np.split(array, places, axis=axis)]
    if made is None:
        return list(parts)
    if made.axis != axis:
        return [write_dequantized(writer, Dequantized(part, made.scale, made.zero, made.axis)) for part in parts]
    scales = _cut_constant(writer, made.scale, places)
    zeros = [None] * len(parts) if made.zero is None else _cut_constant(writer, made.zero, places)
    return [write_dequantized(writer, Dequantized(*three, axis)) for three in zip(parts, scales, zeros, strict=True)]


def _cut_constant(writer: Writer, value: ir.Value, places: np.ndarray) -> list[ir.Value]:
    array = constant(value)
    if array is None:
        raise ir.passes.PassError(f"{value.name}: a constant encoding is needed")
    return [writer.constant("encoding", part) for part in np.split(array, places)]
