"""A safetensors file mapped to memory: what is not touched is not read, and nothing is copied.

Everything its header says is doubted: types, shapes and offsets have to describe exactly the bytes that follow, each of them once. Arrays
are read-only and hold the map for as long as one of them lives; a file may be replaced or deleted meanwhile, but must not be written to.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from quad.core.errors import InputError, VerificationError, mismatch

DTYPES = {
    kind: np.dtype(name)
    for kind, name in {
        "F64": "float64", "F32": "float32", "F16": "float16", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
        "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8",
    }.items()
}  # fmt: skip
SETTLED_NS = 2_000_000_000  # no file system in use counts time in coarser steps
_METADATA = "__metadata__"
_LENGTH_BYTES, _LONGEST_HEADER, _MOST_AXES = 8, 16 * 2**20, 8  # the format allows more than a pack may need
_PAGE_BYTES = mmap.PAGESIZE

Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One tensor in a header; offsets are from the header's end."""

    dtype: str
    shape: Annotated[tuple[Count, ...], msgspec.Meta(max_length=_MOST_AXES)]
    data_offsets: tuple[Count, Count]


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Identity and last change of a file: one that is the same in all of these was not written to in between."""

    device: int
    inode: int
    size_bytes: int
    modified_ns: int
    changed_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Identity:
        return cls(
            device=status.st_dev,
            inode=status.st_ino,
            size_bytes=status.st_size,
            modified_ns=status.st_mtime_ns,
            changed_ns=status.st_ctime_ns,
        )

    def settled(self, now_ns: int) -> bool:
        """Would a change after `now_ns` show: not where the last one is so fresh that the clock may not have moved on."""
        return max(self.modified_ns, self.changed_ns) + SETTLED_NS < now_ns


@dataclass(frozen=True, kw_only=True)
class TensorFile:
    """A mapped file.

    Args:
        where: its path, for messages.
        metadata: the words in its header.
        tensors: name -> read-only view of the map; one may begin at any byte, see `flags.aligned`.
        content: all bytes of the file.
        identity: of the file that is mapped, whatever lies at its path by now.
    """

    where: str
    metadata: dict[str, str]
    tensors: dict[str, NDArray[Any]]
    content: NDArray[np.uint8]
    identity: Identity

    def sha256(self) -> str:
        """Digest of all bytes; reads the file as it goes."""
        return hashlib.sha256(self.content.data).hexdigest()

    def touch(self) -> None:
        """Have all of it read now, not when a graph first asks for it."""
        self.content[::_PAGE_BYTES].max()


def map_tensors(path: Path) -> TensorFile:
    """Map a safetensors file.

    Args:
        path: a regular file; see to that first, because a pipe is waited for.

    Raises:
        InputError: the system does not let it be read.
        VerificationError: it is no whole safetensors file.
    """
    where = str(path)
    try:
        with path.open("rb", buffering=0) as stream:
            identity = Identity.of(os.fstat(stream.fileno()))
            if identity.size_bytes <= _LENGTH_BYTES:
                raise _malformed(where, f"{identity.size_bytes} bytes")
            memory = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise InputError(mismatch(where, "a file that can be read", error.strerror or str(error), "check the path")) from error
    content: NDArray[np.uint8] = np.ndarray((len(memory),), np.uint8, memory)
    metadata, entries, start = _header(where, content)
    _check_layout(where, entries, len(content) - start)
    try:
        tensors: dict[str, NDArray[Any]] = {
            name: np.ndarray(entry.shape, DTYPES[entry.dtype], memory, start + entry.data_offsets[0]) for name, entry in entries.items()
        }
    except ValueError as error:  # no bytes, but axes without end
        raise _malformed(where, str(error)) from error
    return TensorFile(where=where, metadata=metadata, tensors=tensors, content=content, identity=identity)


def _header(where: str, content: NDArray[np.uint8]) -> tuple[dict[str, str], dict[str, _Entry], int]:
    """Metadata, entries, and where the data begins."""
    length = int.from_bytes(content[:_LENGTH_BYTES].tobytes(), "little")
    end = _LENGTH_BYTES + length
    if length > _LONGEST_HEADER or end > len(content):
        raise _malformed(where, f"a header of {length} bytes in a file of {len(content)}")
    text = content[_LENGTH_BYTES:end].tobytes()
    if not text.startswith(b"{"):
        raise _malformed(where, "no header")
    try:
        parts = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        metadata = msgspec.json.decode(parts.pop(_METADATA, msgspec.Raw(b"{}")), type=dict[str, str])
        return metadata, {name: _DECODER.decode(part) for name, part in parts.items()}, end
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _malformed(where, f"a header that is none ({error})") from error


def _check_layout(where: str, entries: Mapping[str, _Entry], size: int) -> None:
    """Refuse a header that does not describe each byte of the data once."""
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        begin, after = entry.data_offsets
        if entry.dtype not in DTYPES:
            raise _malformed(where, f"{name[:80]} of type {entry.dtype[:20]}")
        if begin != end or after - begin != math.prod(entry.shape) * DTYPES[entry.dtype].itemsize or after > size:
            raise _malformed(where, f"{name[:80]} of shape {entry.shape} at {begin} to {after}, after {end} of {size} bytes")
        end = after
    if end != size:
        raise _malformed(where, f"{size - end} bytes that belong to no tensor")


def _malformed(where: str, actual: str) -> VerificationError:
    return VerificationError(mismatch(where, "a safetensors file", f"something else ({actual})", "fetch it again"))


_DECODER = msgspec.json.Decoder(_Entry)
