"""Files byte by byte, safetensors above all, so that they can be wrong in any way."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

F32 = {"dtype": "F32", "shape": [2, 2]}
NAME = "ink.safetensors"
Written = Callable[[Path], Path]


def changed(change: Callable[[Path], object]) -> Written:
    """Changes a copy of what a case is given, a model's or a bundle's folder."""

    def write(root: Path) -> Path:
        change(root)
        return root

    return write


def put(name: str, content: bytes) -> Written:
    return changed(lambda root: (root / name).write_bytes(content))


def headed(entries: object, data: bytes = b"", length: int | None = None) -> bytes:
    """A file with this header, bytes or what becomes JSON; `length` is what it says of the header's length."""
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(start: object, end: object, **changes: object) -> dict[str, object]:
    """One tensor's entry in a header: 2x2 floats if not said otherwise."""
    return {**F32, "data_offsets": [start, end], **changes}


def ones(*shape: int) -> Tensor:
    return torch.ones(shape)


def of_bytes(content: bytes | Callable[[], bytes], name: str = NAME) -> Written:
    """Writes a file of these bytes."""

    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content() if callable(content) else content)
        return folder / name

    return write


def of_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, name: str = NAME) -> Written:
    """Writes a well-formed file of these tensors."""
    whole = {key: value.contiguous() for key, value in tensors.items()}
    return of_bytes(lambda: save(whole, dict(metadata) if metadata else None), name)


def of_parts(*parts: Written, named: str = "") -> Written:
    """Several files in one folder, of which the user names one, or the folder."""

    def write(folder: Path) -> Path:
        for part in parts:
            part(folder)
        return folder / named

    return write


def of_json(value: Any, name: str) -> Written:
    return of_bytes(json.dumps(value).encode(), name)
