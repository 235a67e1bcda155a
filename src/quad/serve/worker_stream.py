"""The stream between the server and a process of its own, decoder or admission: descriptor 0, both ways, messages behind their length."""

from __future__ import annotations

import os
import struct

STREAM = 0
LENGTH = struct.Struct(">I")


def framed(data: bytes) -> bytes:
    """A message as it is sent: its length in 4 bytes, then itself."""
    return LENGTH.pack(len(data)) + data


def read_exactly(n_bytes: int) -> bytes:
    """So many bytes of the stream; fewer, or none, where it ends."""
    pieces, missing = [], n_bytes
    while missing and (piece := os.read(STREAM, missing)):
        pieces.append(piece)
        missing -= len(piece)
    return b"".join(pieces)


def write_all(data: bytes) -> None:
    """Send all of it."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(STREAM, rest) :]
