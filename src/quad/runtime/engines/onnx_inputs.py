"""The inputs of an ONNX file, read from the file alone: a graph need not be loaded to compare it with its bundle.

Only what leads to a shape is read, everything else is stepped over; weights are never touched. Whatever cannot be read so is left to the
engine, which has the last word on every graph it loads anyway.

Source: protocol buffers' encoding (varints, length-delimited fields), field numbers of onnx.proto.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from quad.runtime.engines.engine import Shape

_GRAPH, _INPUT = 7, 11  # of ModelProto, of GraphProto
_NAME, _TYPE, _TENSOR, _SHAPE, _DIM, _DIM_VALUE = 1, 2, 1, 2, 1, 1
_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5
_LONGEST_VARINT = 10


class _Unreadable(Exception):
    """No protocol buffer."""


def graph_inputs(model_file: Path) -> dict[str, Shape] | None:
    """Graph input name -> shape, None for a dynamic axis; None where the file is not plainly an ONNX graph."""
    try:
        with model_file.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _inputs(data) or None
    except (_Unreadable, UnicodeDecodeError, ValueError, OSError):  # ValueError: an empty file
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
    return next((value for number, kind, value, _ in _fields(data, *dim) if (number, kind) == (_DIM_VALUE, _VARINT)), None)


def _parts(data: mmap.mmap, span: tuple[int, int], field: int) -> Iterator[tuple[int, int]]:
    """Where the messages and strings of one field number begin and end."""
    for number, kind, start, end in _fields(data, *span):
        if (number, kind) == (field, _BYTES):
            yield start, end


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Number, wire type, and begin and end of each field's bytes; of a varint its value, twice."""
    while start < end:
        tag, start = _varint(data, start, end)
        if not tag >> 3:  # no field has the number 0
            raise _Unreadable
        kind = tag & 7
        if kind == _VARINT:
            value, start = _varint(data, start, end)
            yield tag >> 3, kind, value, value
            continue
        if kind == _BYTES:
            length, start = _varint(data, start, end)
        elif kind in (_FIXED_32, _FIXED_64):
            length = 4 if kind == _FIXED_32 else 8
        else:
            raise _Unreadable
        if start + length > end:
            raise _Unreadable
        yield tag >> 3, kind, start, start + length
        start += length


def _varint(data: mmap.mmap, start: int, end: int) -> tuple[int, int]:
    """A number, and where it ends."""
    value = 0
    for place in range(start, min(end, start + _LONGEST_VARINT)):
        value |= (data[place] & 0x7F) << (7 * (place - start))
        if data[place] < 0x80:
            return value, place + 1
    raise _Unreadable
