"""A safetensors file as arrays: mapped where it is the device's own, so that what is not touched is not read, and nothing is copied.

Arrays are read-only and hold the map for as long as one of them lives; a mapped file may be replaced or deleted meanwhile, but must not be
written to. Any other file is read into memory (`copy_tensors`).
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quad.core.errors import InputError, VerificationError, mismatch
from quad.core.memory import memory_block
from quad.core.storage.header import LENGTH_BYTES, Entry, Header, read_header
from quad.core.storage.stable_file import Identity, StableFile

DTYPES = {
    kind: np.dtype(name)
    for kind, name in {
        "F64": "float64", "F32": "float32", "F16": "float16", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
        "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8",
    }.items()
}  # fmt: skip
_LONGEST_HEADER = 16 * 2**20  # the format allows more than a pack may need
_PAGE_BYTES = mmap.PAGESIZE
_BITS = {name: kind.itemsize * 8 for name, kind in DTYPES.items()}


@dataclass(frozen=True, kw_only=True)
class TensorFile:
    """A mapped file, or a copy.

    Args:
        where: its path, for messages.
        metadata: the words in its header.
        tensors: name -> read-only view of the content; one may begin at any byte, see `flags.aligned`.
        content: all bytes of the file.
        identity: of the file that was opened, whatever lies at its path by now.
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


def map_tensors(path: Path, ahead: bool = False) -> TensorFile:
    """Map a safetensors file that nobody writes to once it has its name, such as one of a bundle.

    Args:
        path: a regular file; see to that first, because a pipe is waited for.
        ahead: have the system begin to read all of it, while its header is looked at and whatever follows.

    Raises:
        InputError: the system does not let it be read.
        VerificationError: it is no whole safetensors file.
    """
    where = str(path)
    with _readable(where), path.open("rb", buffering=0) as stream:
        identity = Identity.of(os.fstat(stream.fileno()))
        if identity.size_bytes <= LENGTH_BYTES:
            raise _malformed(where, f"{identity.size_bytes} bytes")
        memory = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        if ahead and hasattr(mmap, "MADV_WILLNEED"):
            with suppress(OSError):  # a hint
                memory.madvise(mmap.MADV_WILLNEED)
    content: NDArray[np.uint8] = np.ndarray((len(memory),), np.uint8, memory)
    return _parsed(where, content, identity)


def copy_tensors(path: Path) -> TensorFile:
    """Read a safetensors file of anybody's into memory; it may be cut or written to afterwards.

    Args:
        path: as `map_tensors`.

    Raises:
        InputError: as `map_tensors`; or it was changed while it was read. VerificationError: as `map_tensors`.
    """
    with _readable(str(path)):
        file = StableFile.of(path)
        block = memory_block(max(file.size, 1))
        file.read_into(0, memoryview(block)[: file.size])
    content: NDArray[np.uint8] = np.ndarray((file.size,), np.uint8, block)
    content.flags.writeable = False
    return _parsed(str(path), content, file.identity)


def open_header(path: Path) -> Header:
    """The header of a safetensors file; nothing else is read.

    Raises:
        InputError, VerificationError: as `copy_tensors`.
    """
    with _readable(str(path)), _whole(str(path)):
        return StableFile.of(path).header(_LONGEST_HEADER, _BITS)


def _parsed(where: str, content: NDArray[np.uint8], identity: Identity) -> TensorFile:
    with _whole(where):
        header = read_header(lambda start, size: content[start : start + size].data, len(content), _LONGEST_HEADER, _BITS)
        tensors = {name: _array(content, header.start, entry) for name, entry in header.entries.items()}
    return TensorFile(where=where, metadata=header.metadata, tensors=tensors, content=content, identity=identity)


def _array(content: NDArray[np.uint8], start: int, entry: Entry) -> NDArray[Any]:
    array: NDArray[Any] = np.ndarray(entry.shape, DTYPES[entry.dtype], content.data, start + entry.data_offsets[0])
    return array


@contextmanager
def _readable(where: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(mismatch(where, "a file that can be read", error.strerror or str(error), "check the path")) from error


@contextmanager
def _whole(where: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:  # `Malformed`, or no bytes, but axes without end
        raise _malformed(where, str(error)) from error


def _malformed(where: str, actual: str) -> VerificationError:
    return VerificationError(mismatch(where, "a safetensors file", f"something else ({actual})", "fetch it again"))
