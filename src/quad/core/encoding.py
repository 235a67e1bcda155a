"""Encodings: how the real numbers of one tensor become integers, and back. Source: docs/method.md section 1, Eq. 4-7."""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray

MIN_SCALE = 1e-8

_DTYPES: dict[tuple[int, bool], type[np.integer]] = {
    (4, True): np.int8,  # NumPy has no smaller one; files hold two in a byte
    (4, False): np.uint8,
    (8, True): np.int8,
    (8, False): np.uint8,
    (16, True): np.int16,
    (16, False): np.uint16,
    (32, True): np.int32,
}


class Encoding(msgspec.Struct, frozen=True, kw_only=True):
    """Affine encoding of one tensor.

    Args:
        bits: 4, 8, 16 or 32.
        signed: integers are two's complement; symmetric encodings use `[-qmax, qmax]` only.
        symmetric: zero point is 0 and the range is `+-max|T|`.
        scale: one entry, or one per channel.
        zero_point: as many entries as `scale`.
        axis: the channel axis, None per tensor.
        largest: integers beyond this magnitude are not used, where a target counts fewer than the type has; UNSET for the type's own end.
    """

    bits: int
    signed: bool
    symmetric: bool
    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    axis: int | None = None
    largest: int | msgspec.UnsetType = msgspec.UNSET

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(_DTYPES[self.bits, self.signed])

    @property
    def stored_as(self) -> str:
        """Its element type in a file."""
        return self.dtype.name if self.bits > 4 else "int4" if self.signed else "uint4"

    @property
    def qmin(self) -> int:
        return -self.qmax if self.symmetric and self.signed else -(2 ** (self.bits - 1)) * self.signed

    @property
    def qmax(self) -> int:
        return 2 ** (self.bits - self.signed) - 1 if self.largest is msgspec.UNSET else self.largest

    def within(self, largest: int | msgspec.UnsetType) -> Encoding:
        """The same range on integers of no larger magnitude, in wider steps; UNSET, and what is no bound to these integers, change nothing.

        For symmetric encodings alone.
        """
        if largest is msgspec.UNSET or largest >= self.qmax:
            return self
        wider = np.asarray(self.scale, np.float64) * (self.qmax / largest)
        return msgspec.structs.replace(self, scale=tuple(float(s) for s in wider.astype(np.float32)), largest=largest)

    def broadcast(self, ndim: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Scale and zero point shaped to broadcast against a tensor of `ndim` axes."""
        scale = np.asarray(self.scale, dtype=np.float32)
        zero = np.asarray(self.zero_point, dtype=np.int64)
        if self.axis is None:
            return scale.reshape(()), zero.reshape(())
        shape = [1] * ndim
        shape[self.axis] = -1
        return scale.reshape(shape), zero.reshape(shape)

    def quantize(self, tensor: NDArray[np.floating]) -> NDArray[np.integer]:
        """Eq. 6: `clamp(round(T / s) + z, qmin, qmax)`, ties to even, in float32 as engines do."""
        scale, zero = self.broadcast(tensor.ndim)
        # float32 counts exactly to 2^24: enough for 16 bits, whose clipped values alone lie beyond.
        q = np.rint(tensor.astype(np.float32) / scale) + zero.astype(np.float32 if self.bits <= 16 else np.float64)
        clipped: NDArray[np.integer] = np.clip(q, self.qmin, self.qmax).astype(self.dtype)
        return clipped

    def dequantize(self, integers: NDArray[np.integer]) -> NDArray[np.float32]:
        """Eq. 7: `s (q - z)`."""
        scale, zero = self.broadcast(integers.ndim)
        return ((integers.astype(np.int64) - zero).astype(np.float32) * scale).astype(np.float32)


def encode_range(low: NDArray[np.floating] | float, high: NDArray[np.floating] | float, *, bits: int, signed: bool,
                 symmetric: bool, axis: int | None = None) -> Encoding:  # fmt: skip
    """The encoding of a range: Eq. 4 and 5.

    Zero is forced into the range, so that zero adapters and zero padding are exact, and `s >= 1e-8`.

    Args:
        low, high: scalars, or arrays `(channels,)` with `axis`.

    Raises:
        ValueError: a bound is NaN or infinite.
    """
    lo = np.minimum(np.atleast_1d(np.asarray(low, dtype=np.float64)), 0.0)
    hi = np.maximum(np.atleast_1d(np.asarray(high, dtype=np.float64)), 0.0)
    if not (np.isfinite(lo).all() and np.isfinite(hi).all()):
        raise ValueError("range holds NaN or Inf")
    probe = Encoding(bits=bits, signed=signed, symmetric=symmetric, scale=(1.0,), zero_point=(0,))
    if symmetric:
        scale = np.maximum(np.maximum(-lo, hi) / probe.qmax, MIN_SCALE)
        zero = np.zeros_like(scale)
    else:
        scale = np.maximum((hi - lo) / (probe.qmax - probe.qmin), MIN_SCALE)
        zero = np.clip(np.rint(probe.qmin - lo / scale), probe.qmin, probe.qmax)
    scales = tuple(float(s) for s in scale.astype(np.float32))
    return msgspec.structs.replace(probe, scale=scales, zero_point=tuple(int(z) for z in zero), axis=axis)
