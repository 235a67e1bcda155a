"""The inputs of an ONNX file, read from the file alone: a graph need not be loaded to compare it with its bundle.

Only what leads to a shape is read, everything else is stepped over; weights are never touched. Whatever cannot be read so is left to the
engine, which has the last word on every graph it loads anyway.

Source: field numbers of onnx.proto.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from quad.runtime.engines.engine import Shape
from quad.runtime.engines.wire_format import BYTES, VARINT, Unreadable, fields

_GRAPH, _INPUT = 7, 11  # of ModelProto, of GraphProto
_NAME, _TYPE, _TENSOR, _SHAPE, _DIM, _DIM_VALUE = 1, 2, 1, 2, 1, 1


def graph_inputs(model_file: Path) -> dict[str, Shape] | None:
    """Graph input name -> shape, None for a dynamic axis; None where the file is not plainly an ONNX graph."""
    try:
        with model_file.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _inputs(data) or None
    except (Unreadable, UnicodeDecodeError, ValueError, OSError):  # ValueError: an empty file
        return None


def _inputs(data: mmap.mmap) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {}
    for graph in _parts(data, (0, len(data)), _GRAPH):
        for part in _parts(data, graph, _INPUT):
            name = b"".join(data[slice(*span)] for span in _parts(data, part, _NAME)).decode()
            for span in _parts(data, part, _TYPE):
                for tensor in _parts(data, span, _TENSOR):
                    for shape in _parts(data, tensor, _SHAPE):
                        shapes[name] = tuple(_size(data, dim) for dim in _parts(data, shape, _DIM))
    return shapes


def _size(data: mmap.mmap, dim: tuple[int, int]) -> int | None:
    return next((field.value for field in fields(data, *dim) if (field.number, field.kind) == (_DIM_VALUE, VARINT)), None)


def _parts(data: mmap.mmap, span: tuple[int, int], number: int) -> Iterator[tuple[int, int]]:
    """Where the messages and strings of one field number begin and end."""
    for field in fields(data, *span):
        if (field.number, field.kind) == (number, BYTES):
            yield field.start, field.end
