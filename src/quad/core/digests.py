"""Canonical JSON and SHA-256: what two parties compare instead of guessing from shapes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec

from quad.core.storage.reading import reading_from

CHUNK_BYTES = 1 << 20


def canonical_json(value: Any) -> bytes:
    """One byte string for one value: sorted keys, no spaces, UTF-8, finite numbers only.

    Args:
        value: JSON-like objects or msgspec structs.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    return json.dumps(msgspec.to_builtins(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON of `value`, 64 hex digits."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hex digits, read in chunks.

    Raises:
        BackendError: the system does not let it be read.
    """
    h = hashlib.sha256()
    with reading_from(path), path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            h.update(chunk)
    return h.hexdigest()
