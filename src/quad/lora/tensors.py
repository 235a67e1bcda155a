"""The tensors of a LoRA file: mapped into memory as the file has them, widened to what NumPy can count with one at a time.

NumPy has no bfloat16 and no 8-bit floats, and `safetensors`' own NumPy reader fails on them, so their bits are widened here.
Sources: Micikevicius 2022, "FP8 Formats for Deep Learning", table 1 (E4M3 without infinities, E5M2); bfloat16 is the upper half of a
float32, and E5M2 the upper half of a float16.
"""

from __future__ import annotations

import json
import mmap
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from quad.core.errors import InputError, UnsupportedError, mismatch
from quad.lora.locate import first_bytes
from quad.lora.quote import quoted

# safetensors' name of a type -> how NumPy holds its bits.
_STORAGE = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "F8_E4M3": "u1", "F8_E5M2": "u1"}
# Trainers write alpha as a whole number too; nothing else of a LoRA is one.
_ALPHA_STORAGE = {"I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1"}
_LENGTH_BYTES = 8  # of the header's own length

Role = str  # what a tensor is to its module, such as `down`; `quad.lora.kinds` names all of them


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """One tensor of a file.

    Args:
        dtype: safetensors' name of its type.
        storage: its bits in the file's own order, a view of the mapped file.
    """

    dtype: str
    storage: NDArray[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.storage.shape

    @property
    def ndim(self) -> int:
        return self.storage.ndim

    @property
    def size(self) -> int:
        return self.storage.size

    def flat(self) -> StoredTensor:
        """The same numbers as a vector."""
        return replace(self, storage=self.storage.reshape(-1))

    def values(self) -> NDArray[Any]:
        """The numbers, in NumPy's own type where it has it, else in float32, which holds them all."""
        return widened(self.dtype, self.storage)


def widened(dtype: str, storage: NDArray[Any]) -> NDArray[Any]:
    """The numbers that the bits of one type stand for; exact.

    Args:
        dtype: safetensors' name of the type.
        storage: any shape; unsigned integers for the types that NumPy does not have.

    Returns:
        The shape of `storage`; the array itself where NumPy has the type.
    """
    match dtype:
        case "BF16":
            singles: NDArray[np.float32] = (storage.astype("<u4") << 16).view("<f4")
            return singles
        case "F8_E5M2":
            halves: NDArray[np.float16] = (storage.astype("<u2") << 8).view("<f2")
            return halves.astype("<f4")
        case "F8_E4M3":
            return np.take(_E4M3, storage)
        case _:
            aligned: NDArray[Any] = np.require(storage, requirements="A")  # a tensor may begin at any byte of the file
            return aligned


def _e4m3_numbers() -> NDArray[np.float32]:
    """All 256 numbers of E4M3, exponent bias 7: without an exponent a number is subnormal, and all bits set are NaN."""
    bits = np.arange(128)
    exponent, mantissa = bits >> 3, bits & 7
    positive = np.ldexp((mantissa + 8 * (exponent > 0)).astype(np.float32), np.maximum(exponent, 1) - 10)
    positive[-1] = np.nan
    return np.concatenate([positive, -positive])


_E4M3 = _e4m3_numbers()


def read_tensors(path: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file; no tensor is read before its values are asked for.

    Raises:
        InputError: the file is truncated or no safetensors file.
        UnsupportedError: it holds whole or complex numbers, or floats of a kind that means nothing alone.
    """
    try:
        with safe_open(path, framework="np") as file:  # checks that the header describes each byte of the file once
            names, metadata = list(file.keys()), file.metadata() or {}
        return _mapped(path, names), metadata
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError, MemoryError) as error:
        cause = first_bytes(path) or f"{error}".partition("\n")[0][:200] or type(error).__name__
        raise InputError(mismatch(f"{path}", "a whole safetensors file", cause, "fetch or save it again")) from error


def _mapped(path: Path, names: list[str]) -> dict[str, StoredTensor]:
    """Views of the mapped file; copied on write, so that no one can change the file through them."""
    with path.open("rb") as stream:
        content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
    start = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES], "little")
    entries = json.loads(content[_LENGTH_BYTES:start])
    tensors = {}
    for name in names:
        dtype, shape, (begin, _) = (entries[name][field] for field in ("dtype", "shape", "data_offsets"))
        tensors[name] = StoredTensor(dtype, np.ndarray(shape, _storage_type(path, name, dtype), content, start + begin))
    return tensors


def _storage_type(path: Path, name: str, dtype: str) -> str:
    """How NumPy holds the bits of a tensor's type.

    Raises:
        UnsupportedError: a type that no part of a LoRA has.
    """
    storage = _STORAGE.get(dtype) or (_ALPHA_STORAGE.get(dtype) if name.endswith(".alpha") else None)
    if storage is None:
        raise UnsupportedError(mismatch(f"{path}, '{quoted(name)}'", "floats", dtype, "save it in float16 or float32"))
    return storage
