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
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quad.core.errors import InputError, VerificationError, mismatch
from quad.core.memory import memory_block
from quad.core.storage.header import LENGTH_BYTES, Header, read_header
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
_FIRST_BYTES, _PIECE_BYTES = 1 << 17, 1 << 19  # a file is read ahead in pieces
_BITS = {name: kind.itemsize * 8 for name, kind in DTYPES.items()}


@dataclass(frozen=True, kw_only=True)
class FileContent:
    """All bytes of a file, mapped or copied; what they say is not looked at yet.

    Args:
        where: its path.
        data: `(size,)` uint8, read-only.
        identity: of the file that was opened, whatever lies at its path by now.
    """

    where: str
    data: NDArray[np.uint8]
    identity: Identity

    def sha256(self) -> str:
        """Digest of all bytes; reads the file as it goes."""
        return hashlib.sha256(self.data.data).hexdigest()

    def touch(self) -> None:
        """Have all of it read now, not when a graph first asks for it."""
        self.data[::_PAGE_BYTES].max()

    def read_ahead(self) -> None:
        """Have the system begin to read it, the header's piece first: asked for in one, the first byte comes with the last. A hint."""
        if hasattr(os, "posix_fadvise"):
            with suppress(OSError):
                number = os.open(self.where, os.O_RDONLY | os.O_NONBLOCK)
                try:
                    for start, end in pairwise((0, *range(_FIRST_BYTES, len(self.data), _PIECE_BYTES), len(self.data))):
                        os.posix_fadvise(number, start, end - start, os.POSIX_FADV_WILLNEED)
                finally:
                    os.close(number)

    def parsed(self) -> TensorFile:
        """Its tensors.

        Raises:
            VerificationError: it is no whole safetensors file.
        """
        size = len(self.data)
        with _whole(self.where):
            header = read_header(lambda start, size: self.data[start : start + size].data, size, _LONGEST_HEADER, _BITS)
            memory, start = self.data.data, header.start
            tensors: dict[str, NDArray[Any]] = {
                name: np.ndarray(entry.shape, DTYPES[entry.dtype], memory, start + entry.data_offsets[0])
                for name, entry in header.entries.items()
            }
        return TensorFile(metadata=header.metadata, tensors=tensors, content=self)


@dataclass(frozen=True, kw_only=True)
class TensorFile:
    """A safetensors file, mapped or copied.

    Args:
        metadata: the words in its header.
        tensors: name -> read-only view of the content; one may begin at any byte, see `flags.aligned`.
        content: all of its bytes.
    """

    metadata: dict[str, str]
    tensors: dict[str, NDArray[Any]]
    content: FileContent


def map_content(path: Path) -> FileContent:
    """Map a file that nobody writes to once it has its name, such as one of a bundle.

    Args:
        path: a regular file; see to that first, because a pipe is waited for.

    Raises:
        InputError: the system does not let it be read.
        VerificationError: it is shorter than any safetensors file.
    """
    where = str(path)
    with _readable(where), path.open("rb", buffering=0) as stream:
        identity = Identity.of(os.fstat(stream.fileno()))
        if identity.size_bytes <= LENGTH_BYTES:
            raise _malformed(where, f"{identity.size_bytes} bytes")
        memory = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    return FileContent(where=where, data=np.ndarray((len(memory),), np.uint8, memory), identity=identity)


def copy_content(path: Path) -> FileContent:
    """Read a file of anybody's into memory; it may be cut or written to afterwards.

    Args:
        path: as `map_content`.

    Raises:
        InputError: as `map_content`; or it was changed while it was read.
    """
    with _readable(str(path)):
        file = StableFile.of(path)
        block = memory_block(max(file.size, 1))
        file.read_into(0, memoryview(block)[: file.size])
    data: NDArray[np.uint8] = np.ndarray((file.size,), np.uint8, block)
    data.flags.writeable = False
    return FileContent(where=str(path), data=data, identity=file.identity)


def map_tensors(path: Path) -> TensorFile:
    """As `map_content`, parsed.

    Raises:
        InputError, VerificationError: as `map_content` and `FileContent.parsed`.
    """
    return map_content(path).parsed()


def copy_tensors(path: Path) -> TensorFile:
    """As `copy_content`, parsed.

    Raises:
        InputError, VerificationError: as `copy_content` and `FileContent.parsed`.
    """
    return copy_content(path).parsed()


def open_header(path: Path) -> Header:
    """The header of a safetensors file; nothing else is read.

    Raises:
        InputError, VerificationError: as `copy_tensors`.
    """
    with _readable(str(path)), _whole(str(path)):
        return StableFile.of(path).header(_LONGEST_HEADER, _BITS)


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
