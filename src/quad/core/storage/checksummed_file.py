"""A sealed file: arrays and a few words, written whole or not at all, and passed over unless it is whole and its reader's own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from quad.core.digests import digest
from quad.core.storage.files import new_file
from quad.core.storage.header import LENGTH_BYTES
from quad.core.storage.tensor_file import DTYPES

Arrays = Mapping[str, NDArray[Any]]
_IDENTITY, _SEAL = "identity", "seal"
_NAMES = {dtype: name for name, dtype in DTYPES.items()} | {np.dtype(bool): "BOOL"}


def write_checksummed(path: Path, identity: str, metadata: Mapping[str, str], arrays: Arrays) -> None:
    """Write a file that only a reader of the same identity takes.

    Args:
        identity: digest of all that the content is made from.
        metadata: words by name, none of them `identity` or `seal`.

    Raises:
        BackendError: the disk is full or the place cannot be written to.
    """
    words = {_IDENTITY: identity, **metadata}
    contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    with new_file(path) as stream:
        stream.write(_header({**words, _SEAL: _seal(words, contiguous)}, contiguous))
        for array in _in_order(contiguous).values():  # one after the other: the library would hold all of them a second time
            stream.write(array.tobytes())


def _header(words: Mapping[str, str], arrays: Arrays) -> bytes:
    """The beginning of a safetensors file, before its numbers."""
    entries: dict[str, Any] = {"__metadata__": dict(words)}
    start = 0
    for name, array in _in_order(arrays).items():
        entries[name] = {"dtype": _NAMES[array.dtype], "shape": list(array.shape), "data_offsets": [start, start + array.nbytes]}
        start += array.nbytes
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def _in_order(arrays: Arrays) -> dict[str, NDArray[Any]]:
    """Arrays of the longest numbers first, so that each begins where its numbers may."""
    return dict(sorted(arrays.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])))


def read_checksummed(path: Path, identity: str) -> tuple[dict[str, str], dict[str, NDArray[Any]]] | None:
    """The words and arrays; None if there is no file, or one that was cut, bent, or written under another identity."""
    try:
        with safe_open(path, "np") as file:
            words, arrays = dict(file.metadata() or {}), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return None
    if words.pop(_SEAL, None) != _seal(words, arrays) or words.pop(_IDENTITY, None) != identity:
        return None
    return words, arrays


def _seal(words: Mapping[str, str], content: Arrays) -> str:
    """Digest of all that the file says."""
    arrays = {name: (array.dtype.str, list(array.shape), hashlib.sha256(array.tobytes()).hexdigest()) for name, array in content.items()}
    return digest([dict(words), arrays])
