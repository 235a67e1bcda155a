"""The tensors of a LoRA file: read one at a time, and widened to what NumPy can count with.

NumPy has no bfloat16 and no 8-bit floats, and `safetensors`' own NumPy reader fails on them, so their bits are widened here.
Sources: Micikevicius 2022, "FP8 Formats for Deep Learning", table 1 (E4M3 without infinities, E5M2); bfloat16 is the upper half of a
float32, and E5M2 the upper half of a float16.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quad.core.errors import InputError, UnsupportedError, mismatch
from quad.core.storage.header import Header, Malformed
from quad.core.storage.stable_file import StableFile
from quad.lora.checkpoints import refuse_checkpoint
from quad.lora.quote import quoted

# safetensors' name of a type -> how NumPy holds its bits.
_STORAGE = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "F8_E4M3": "u1", "F8_E5M2": "u1"}
# Trainers write alpha as a whole number too, and where a sparse bias has its values; nothing else of a LoRA is one.
_WHOLE_NUMBERS = (".alpha", ".bias_indices", ".bias_size")
_WHOLE_STORAGE = {"I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1"}

Role = str  # what a tensor is to its module, such as `down`; `quad.lora.kinds` names all of them


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredTensor:
    """One tensor of a file, which is read when its values are asked for.

    Args:
        dtype: safetensors' name of its type.
        storage: how NumPy holds its bits.
        start: the byte of the file where it begins.
    """

    file: StableFile
    dtype: str
    storage: str
    shape: tuple[int, ...]
    start: int

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def flat(self) -> StoredTensor:
        """The same numbers as a vector."""
        return replace(self, shape=(self.size,))

    def values(self) -> NDArray[Any]:
        """The numbers, in NumPy's own type where it has it, else in float32, which holds them all; a new array each time.

        Raises:
            InputError: the file was cut, written to or replaced since it was opened.
        """
        content = self.file.read(self.start, self.size * np.dtype(self.storage).itemsize)
        return widened(self.dtype, content.view(self.storage).reshape(self.shape))


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
            return storage


def _e4m3_numbers() -> NDArray[np.float32]:
    """All 256 numbers of E4M3, exponent bias 7: without an exponent a number is subnormal, and all bits set are NaN."""
    bits = np.arange(128)
    exponent, mantissa = bits >> 3, bits & 7
    positive = np.ldexp((mantissa + 8 * (exponent > 0)).astype(np.float32), np.maximum(exponent, 1) - 10)
    positive[-1] = np.nan
    return np.concatenate([positive, -positive])


_E4M3 = _e4m3_numbers()


def read_tensors(file: StableFile) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file; no tensor is read before its values are asked for.

    Raises:
        InputError: the file is truncated, no safetensors file, or was changed since.
        UnsupportedError: it holds whole or complex numbers, or floats of a kind that means nothing alone.
    """
    header = read_lora_header(file)
    tensors = {
        name: StoredTensor(
            file=file,
            dtype=entry.dtype,
            storage=_storage_type(file.path, name, entry.dtype),
            shape=entry.shape,
            start=header.start + entry.data_offsets[0],
        )
        for name, entry in header.entries.items()
    }
    return tensors, header.metadata


def read_lora_header(file: StableFile) -> Header:
    """The header of a safetensors file.

    Raises:
        InputError: as `read_tensors`, or the file holds a whole network.
    """
    try:
        header = file.header()
    except Malformed as error:
        raise InputError(mismatch(f"{file.path}", "a whole safetensors file", f"{error}"[:200], "fetch or save it again")) from error
    refuse_checkpoint(file.path, header.entries)
    return header


def _storage_type(path: Path, name: str, dtype: str) -> str:
    """How NumPy holds the bits of a tensor's type.

    Raises:
        UnsupportedError: a type that no part of a LoRA has.
    """
    storage = _STORAGE.get(dtype) or (_WHOLE_STORAGE.get(dtype) if name.endswith(_WHOLE_NUMBERS) else None)
    if storage is None:
        raise UnsupportedError(mismatch(f"{path}, '{quoted(name)}'", "floats", dtype, "save it in float16 or float32"))
    return storage
