"""A file that may be somebody else's, read without mapping it: all that is read belongs to one state of it.

A mapped file that is cut takes the process with it (SIGBUS), and one that is written to changes under whoever reads it. So only files that
nobody writes to once they have their name are mapped: those of a bundle and of a device's store. Any other is read.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quad.core.errors import InputError, mismatch
from quad.core.storage.header import BITS, LONGEST_HEADER, Header, read_header

SETTLED_NS = 2_000_000_000  # no file system in use counts time in coarser steps
_CHUNK_BYTES = 1 << 20


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


@dataclass(frozen=True)
class StableFile:
    """A file as it was when `of` looked at it."""

    path: Path
    identity: Identity

    @classmethod
    def of(cls, path: Path) -> StableFile:
        """The file at a path, which is a regular one; see to that first, because a pipe is waited for.

        Raises:
            OSError: there is none.
        """
        return cls(path, Identity.of(path.stat()))

    @property
    def size(self) -> int:
        """Bytes."""
        return self.identity.size_bytes

    def read(self, start: int, size: int) -> NDArray[np.uint8]:
        """Bytes `(size,)` of it, which belong to the caller.

        Raises:
            InputError: it was cut, written to, replaced or removed since, or the system does not let it be read.
        """
        content = np.empty(size, np.uint8)
        self.read_into(start, content.data)
        return content

    def read_into(self, start: int, content: memoryview) -> None:
        """As `read`, into memory that is there."""
        filled = 0
        try:
            with self.path.open("rb", buffering=0) as stream:
                stream.seek(start)
                while filled < len(content) and (count := stream.readinto(content[filled:])):
                    filled += count
                self._require_unchanged(os.fstat(stream.fileno()), filled == len(content))
        except FileNotFoundError:
            self._require_unchanged(None, False)
        except OSError as error:
            raise InputError(mismatch(str(self.path), "a file that can be read", error.strerror or str(error), "check its disk")) from error

    def header(self, longest: int = LONGEST_HEADER, bits: Mapping[str, int] = BITS) -> Header:
        """Its header, where it is a safetensors file; arguments as `read_header`.

        Raises:
            Malformed: it is none. InputError: as `read`.
        """
        return read_header(lambda start, size: self.read(start, size).data, self.size, longest, bits)

    def sha256(self) -> str:
        """Digest of all bytes.

        Raises:
            InputError: as `read`.
        """
        digest = hashlib.sha256()
        for start in range(0, self.size, _CHUNK_BYTES):
            digest.update(self.read(start, min(_CHUNK_BYTES, self.size - start)).data)
        return digest.hexdigest()

    def _require_unchanged(self, status: os.stat_result | None, complete: bool) -> None:
        if not complete or status is None or Identity.of(status) != self.identity:
            change = "gone" if status is None else "cut" if status.st_size < self.size else "written to or replaced"
            next_step = "call again when nothing writes to it"
            raise InputError(mismatch(str(self.path), "a file that stays as it is while it is read", f"it was {change}", next_step))
