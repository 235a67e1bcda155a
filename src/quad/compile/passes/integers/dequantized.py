"""Values behind a DequantizeLinear: what they were made of, and constants among them that are cut into parts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from quad.compile.passes.edit import Writer, constant, producer, static_shape

BYTE_WEIGHTS = (ir.DataType.INT8, ir.DataType.UINT4)  # that a kernel of 8-bit integers can read: of 4 bits they are widened
PART = "quad.part"  # of a constant that was cut: the name of the whole, the number of this part, and the axis


@dataclass(frozen=True, kw_only=True)
class Dequantized:
    """`scale (integers - zero)`.

    Args:
        axis: of the channels that each have a scale, None per tensor.
    """

    integers: ir.Value
    scale: ir.Value
    zero: ir.Value | None
    axis: int | None


def dequantized(value: ir.Value | None, *dtypes: ir.DataType) -> Dequantized | None:
    """Integers and encoding of a value; None where it is no DQ of constant encoding, or its integers are of none of these element types."""
    node = producer(value, "DequantizeLinear")
    if node is None or node.inputs[0] is None or constant(node.inputs[1]) is None:
        return None
    integers, scale, *zeros = node.inputs
    if integers is None or scale is None or (dtypes and integers.dtype not in dtypes):
        return None
    axis = (node.attributes["axis"].as_int() if "axis" in node.attributes else 1) if static_shape(scale) else None
    return Dequantized(integers=integers, scale=scale, zero=zeros[0] if zeros else None, axis=axis)


def write_dequantized(writer: Writer, encoded: Dequantized) -> ir.Value:
    """A DQ of these."""
    inputs = [encoded.integers, encoded.scale] if encoded.zero is None else [encoded.integers, encoded.scale, encoded.zero]
    node = writer.node(
        "DequantizeLinear", inputs, static_shape(encoded.integers) or (), **({} if encoded.axis is None else {"axis": encoded.axis})
    )
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    return node.outputs[0]


def cut(writer: Writer, value: ir.Value, axis: int, sizes: Sequence[int]) -> list[ir.Value] | None:
    """A constant, float or dequantized, cut along an axis into parts of the same kind; None where it is computed.

    The integers stay as they are: only which of them lie together changes.
    """
    encoded = dequantized(value)
    array = constant(value if encoded is None else encoded.integers)
    if array is None:
        return None
    places = np.cumsum(sizes)[:-1]
    parts = [writer.constant("part", np.ascontiguousarray(part)) for part in np.split(array, places, axis=axis)]
    if encoded is None:
        return list(parts)
    for index, part in enumerate(parts):
        part.metadata_props.update(encoded.integers.metadata_props)
        part.metadata_props[PART] = json.dumps([encoded.integers.name, index, axis])
    if encoded.axis != axis:
        return [
            write_dequantized(writer, Dequantized(integers=part, scale=encoded.scale, zero=encoded.zero, axis=encoded.axis))
            for part in parts
        ]
    scales = _cut_constant(writer, encoded.scale, places)
    zeros = [None] * len(parts) if encoded.zero is None else _cut_constant(writer, encoded.zero, places)
    return [
        write_dequantized(writer, Dequantized(integers=part, scale=scale, zero=zero, axis=axis))
        for part, scale, zero in zip(parts, scales, zeros, strict=True)
    ]


def _cut_constant(writer: Writer, value: ir.Value, places: np.ndarray) -> list[ir.Value]:
    array = constant(value)
    if array is None:
        raise ir.passes.PassError(f"{value.name}: a constant encoding is needed")
    return [writer.constant("encoding", part) for part in np.split(array, places)]
