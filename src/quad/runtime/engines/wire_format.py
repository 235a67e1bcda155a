"""The fields of a protocol buffer, found in its bytes: the runtime has no library for ONNX graphs.

Source: protocol buffers' encoding (varints, length-delimited fields).
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass

VARINT, FIXED_64, BYTES, FIXED_32 = 0, 1, 2, 5
_LONGEST_VARINT = 10


class Unreadable(Exception):
    """No protocol buffer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Field:
    """One field of a message.

    Args:
        kind: its wire type.
        begin: where it begins, tag and length included.
        start, end: where its content begins and ends.
        value: of a varint, else 0.
    """

    number: int
    kind: int
    begin: int
    start: int
    end: int
    value: int = 0


def fields(data: bytes | mmap.mmap, start: int, end: int) -> Iterator[Field]:
    """The fields of the message in these bytes, in order.

    Raises:
        Unreadable: they are no message.
    """
    while start < end:
        begin = start
        tag, start = _varint(data, start, end)
        number, kind, value = tag >> 3, tag & 7, 0
        if not number:  # no field has the number 0
            raise Unreadable
        if kind == VARINT:
            value, stop = _varint(data, start, end)
        elif kind == BYTES:
            length, start = _varint(data, start, end)
            stop = start + length
        elif kind in (FIXED_32, FIXED_64):
            stop = start + (4 if kind == FIXED_32 else 8)
        else:
            raise Unreadable
        if stop > end:
            raise Unreadable
        yield Field(number=number, kind=kind, begin=begin, start=start, end=stop, value=value)
        start = stop


def _varint(data: bytes | mmap.mmap, start: int, end: int) -> tuple[int, int]:
    """A number, and where it ends."""
    value = 0
    for place in range(start, min(end, start + _LONGEST_VARINT)):
        value |= (data[place] & 0x7F) << (7 * (place - start))
        if data[place] < 0x80:
            return value, place + 1
    raise Unreadable
