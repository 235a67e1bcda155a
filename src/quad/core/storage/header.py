"""The header of a safetensors file: everything it says is doubted.

Types, shapes and offsets have to describe exactly the bytes that follow, each of them once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated

import msgspec

from quad.core.storage.pickles import PICKLE_REASON

LENGTH_BYTES = 8  # of the header's own length
LONGEST_HEADER = 100_000_000  # as the format allows
# The format's types, and bits of one number.
BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
    "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8, "C64": 64,
}  # fmt: skip
# What may lie in a safetensors file's place, by its first bytes.
_OTHER_FORMATS = (
    (b"PK\x03\x04", "a zip archive, as torch.save writes one: a pickle, which can run code when it is opened"),
    *((b"\x80" + bytes([protocol]), PICKLE_REASON) for protocol in range(2, 6)),
    (b"GGUF", "a GGUF file"),
    (b"\x89PNG", "a PNG picture"),
    (b"version https://git-lfs", "a git-lfs pointer in place of the file"),
    (b"<", "a web page in place of the file"),
    (b"{", "a JSON file"),
    (b"\x1f\x8b", "a gzip archive"),
)
_METADATA, _MOST_AXES = "__metadata__", 8

Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]


class Malformed(ValueError):
    """No safetensors file; the message says where it is none."""


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One tensor in a header; offsets are from the header's end."""

    dtype: str
    shape: Annotated[tuple[Count, ...], msgspec.Meta(max_length=_MOST_AXES)]
    data_offsets: tuple[Count, Count]


@dataclass(frozen=True, kw_only=True)
class Header:
    """The words and tensors of a file.

    Args:
        start: the byte that offsets count from.
    """

    metadata: dict[str, str]
    entries: dict[str, Entry]
    start: int


def _other_format(first: bytes) -> str | None:
    """The format of a file that begins so. A header's length may begin with any bytes: short signs need its high ones set."""
    likely_length = first[3:8] == bytes(5)
    return next((name for sign, name in _OTHER_FORMATS if first.startswith(sign) and not (likely_length and len(sign) < 4)), None)


def read_header(read: Callable[[int, int], memoryview], size: int, longest: int = LONGEST_HEADER, bits: Mapping[str, int] = BITS) -> Header:
    """The header of a file.

    Args:
        read: gives bytes of the file from a place on, so many.
        size: of the file, bytes.
        longest: bytes of a header.
        bits: the types that may be, and bits of one number.

    Raises:
        Malformed: it is none, or does not describe each byte of the data once.
    """
    first = bytes(read(0, min(size, 32))) if size else b""
    length = int.from_bytes(first[:LENGTH_BYTES], "little")
    start = LENGTH_BYTES + length
    if size <= LENGTH_BYTES or length > longest or start > size:
        actual = f"{size} bytes" if size <= LENGTH_BYTES else f"a header of {length} bytes in a file of {size}"
        raise Malformed(_other_format(first) or actual)
    text = read(LENGTH_BYTES, length)
    if bytes(text[:1]) != b"{":
        raise Malformed("no header")
    try:
        parts = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        metadata = msgspec.json.decode(parts.pop(_METADATA, msgspec.Raw(b"{}")), type=dict[str, str])
        entries = {name: _DECODER.decode(part) for name, part in parts.items()}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(f"a header that is none ({error})") from error
    _check_layout(entries, size - start, bits)
    return Header(metadata=metadata, entries=entries, start=start)


def with_sorted_metadata(data: bytes) -> bytes:
    """The bytes of a safetensors file, the words of its header in order of their names: the library writes them in a random one.

    Args:
        data: as the library wrote it.
    """
    start = LENGTH_BYTES + int.from_bytes(data[:LENGTH_BYTES], "little")
    parts = msgspec.json.decode(data[LENGTH_BYTES:start], type=dict[str, msgspec.Raw])
    words = msgspec.json.decode(parts[_METADATA], type=dict[str, str])
    text = msgspec.json.encode({**parts, _METADATA: dict(sorted(words.items()))})
    text += b" " * (-len(text) % LENGTH_BYTES)  # so that the tensors stay aligned
    return len(text).to_bytes(LENGTH_BYTES, "little") + text + data[start:]


def _check_layout(entries: Mapping[str, Entry], size: int, bits: Mapping[str, int]) -> None:
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        begin, after = entry.data_offsets
        if entry.dtype not in bits:
            raise Malformed(f"{name[:80]} of type {entry.dtype[:20]}")
        if begin != end or (after - begin) * 8 != math.prod(entry.shape) * bits[entry.dtype] or after > size:
            raise Malformed(f"{name[:80]} of shape {entry.shape} at {begin} to {after}, after {end} of {size} bytes")
        end = after
    if end != size:
        raise Malformed(f"{size - end} bytes that belong to no tensor")


_DECODER = msgspec.json.Decoder(Entry)
