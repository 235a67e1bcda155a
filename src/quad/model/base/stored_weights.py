"""Tensors of weight files: where each one lies, and what of it a network takes; read as float32 one at a time."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from quad.core.digests import digest
from quad.core.errors import InputError, UnsupportedError, mismatch
from quad.core.storage.stable_file import StableFile
from quad.model.base.weight_files import open_header

# safetensors' names of types.
_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "C64": torch.complex64, "BOOL": torch.bool,
}  # fmt: skip
# Types that no network computes in -> the nearest one that holds their numbers.
_HELD = {torch.float64: torch.float32, torch.float8_e4m3fn: torch.float16, torch.float8_e5m2: torch.float16}
EIGHT_BITS = ("F8_E4M3", "F8_E5M2")
# Names under which scales of 8-bit floats lie beside them.
_SCALES = re.compile(r"(^|\.)(scaled_fp8|scale_weight|weight_scale(_inv)?|comfy_quant)$")
_TRANSPOSED = "T"  # in place of an index


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredWeight:
    """A tensor of a weight file, or a part of one.

    Args:
        key: its name in the file.
        dtype: safetensors' name of its type.
        stored_shape: of the whole tensor.
        start, size: bytes of the file.
        parts: what is taken of the whole, one index after the other.
    """

    file: StableFile
    key: str
    dtype: str
    stored_shape: tuple[int, ...]
    start: int
    size: int
    parts: tuple[Any, ...] = ()

    def __getitem__(self, part: Any) -> StoredWeight:
        """A part of it, as an index of a tensor takes one."""
        return replace(self, parts=(*self.parts, part))

    @property
    def T(self) -> StoredWeight:
        """The matrix with its axes changed over."""
        return self[_TRANSPOSED]

    def contiguous(self) -> StoredWeight:
        """See `clone`."""
        return self

    def clone(self) -> StoredWeight:
        """Itself: diffusers' converters treat it as a tensor."""
        return self

    def detach(self) -> StoredWeight:
        """See `clone`."""
        return self

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._taken(torch.empty(self.stored_shape, device="meta")).shape)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def _taken(self, whole: Tensor) -> Tensor:
        for part in self.parts:
            whole = whole.T if part == _TRANSPOSED else whole[part]
        return whole

    def require(self, shape: Sequence[int]) -> None:
        """Refuse what cannot be a weight of this shape.

        Raises:
            InputError: another shape. UnsupportedError: no floats.
        """
        dtype = _TYPES.get(self.dtype)
        if dtype is None or not dtype.is_floating_point:
            expected, stored_type = "weights that are floats", f"{self.key} of {dtype or self.dtype}"
            raise UnsupportedError(mismatch(f"{self.file.path}", expected, stored_type, "choose a model that is not quantized"))
        if self.shape != tuple(shape):
            shapes = f"{self.key} of shape {self.shape}, not {tuple(shape)}"
            raise InputError(mismatch(f"{self.file.path.parent}", "weights that fit config.json", shapes, "fetch or save the model again"))

    def read(self) -> Tensor:
        """Its numbers as float32.

        Raises:
            InputError: NaN or infinity, or the file was changed since it was looked at.
        """
        value = self.read_as_stored()
        return value.to(torch.float32).contiguous()

    def read_as_stored(self) -> Tensor:
        """Its numbers in the precision of the file: float32 at most, and float16, which holds them exactly, for floats of 8 bits.

        Raises:
            InputError: as `read`.
        """
        stored = torch.from_numpy(self.file.read(self.start, self.size)).view(_TYPES[self.dtype]).reshape(self.stored_shape)
        value = self._taken(stored)
        value = value.to(_HELD.get(value.dtype, value.dtype)).contiguous()
        # Of the extremes alone: over the tensor, `isfinite` would make others of its size.
        if value.numel() and not bool(torch.stack(value.aminmax()).isfinite().all()):
            raise InputError(
                mismatch(f"{self.file.path}", "finite weights", f"NaN or infinity in {self.key}", "fetch or save the model again")
            )
        return value.clone() if self.parts else value  # a part alone, without the rest of it in memory


def stored_weights(file: StableFile) -> Mapping[str, StoredWeight]:
    """The tensors of a safetensors file by name.

    Raises:
        InputError: it is no whole safetensors file, or was changed since it was found.
        UnsupportedError: 8-bit floats that mean something only times scales beside them.
    """
    header = open_header(file)
    _refuse_scales(file, {key: entry.dtype for key, entry in header.entries.items()})
    return {
        key: StoredWeight(
            file=file,
            key=key,
            dtype=entry.dtype,
            stored_shape=entry.shape,
            start=header.start + entry.data_offsets[0],
            size=entry.data_offsets[1] - entry.data_offsets[0],
        )
        for key, entry in header.entries.items()
    }


def _refuse_scales(file: StableFile, types: Mapping[str, str]) -> None:
    scale = next((key for key in types if _SCALES.search(key)), None)
    if scale is not None and any(dtype in EIGHT_BITS for dtype in types.values()):
        remedy = "choose the model in 16-bit floats, or one whose 8-bit floats have no scales"
        raise UnsupportedError(mismatch(f"{file.path}", "weights as they are", f"8-bit floats with scales of their own: {scale}", remedy))


def tensors_digest(networks: Mapping[str, nn.Module]) -> str:
    """The identity of a base: SHA-256 over the names, shapes and float32 numbers of its tensors, whatever files they lie in.

    Args:
        networks: component -> the network, loaded.
    """
    tensors = {
        f"{component}.{name.removeprefix('text_model.')}": [list(tensor.shape), hashlib.sha256(tensor.float().numpy().data).hexdigest()]
        for component, network in networks.items()
        for name, tensor in network.state_dict().items()
    }
    return digest(tensors)
