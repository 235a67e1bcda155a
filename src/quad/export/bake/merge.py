"""An update added to a stored weight, on the weight's own lattice.

    W' = s' round((s W + U) / s')        s' = s where all of the channel fits, else the least that lets it

| symbol | here |
|---|---|
| W, s | stored integers, and their scale: one, or one for each channel |
| U | the update, `sum_i w_i B_i A_i` in real numbers |
| W', s' | what is stored afterwards |

No entry of `W' - (s W + U)` is larger than `s' / 2`, but for float32's rounding: nothing is clipped. A channel without an update keeps its
integers. Floats are added as they are. To clip where that errs less over the channel was tried: it gains nothing (docs/results.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Real = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class LatticeWeight:
    """A constant as a graph stores it.

    Args:
        array: symmetric integers, or floats.
        scale: float32, one or `(channels,)`; None for floats.
        axis: of the channels, None for one scale.
    """

    array: NDArray[Any]
    scale: NDArray[np.float32] | None = None
    axis: int | None = None

    def real(self) -> Real:
        """The numbers that it stands for."""
        if self.scale is None:
            return self.array.astype(np.float64)
        return self.array * _along(self.scale.astype(np.float64), self.axis, self.array.ndim)


def merged(weight: LatticeWeight, update: Real, bits: int | None = None) -> LatticeWeight:
    """The weight with the update in it.

    Args:
        update: of the weight's shape, as it is stored.
        bits: of the integers; None for the weight's own, whose lattice is kept where all fits.
    """
    target = weight.real() + update
    if weight.scale is None:
        return LatticeWeight(array=target.astype(weight.array.dtype))
    dtype = weight.array.dtype if bits is None else np.dtype(f"int{bits}")
    largest, ndim = int(np.iinfo(dtype).max), target.ndim
    others = tuple(axis for axis in range(ndim) if axis != weight.axis) if weight.axis is not None else None
    needed = _at_least(np.abs(target).max(axis=others) / largest)
    if dtype != weight.array.dtype:
        scale = np.where(needed > 0, needed, weight.scale).astype(np.float32)
    else:
        fits = np.rint(needed.astype(np.float64) * largest / weight.scale) <= largest
        scale = np.where(fits, weight.scale, needed).astype(np.float32)
    steps = np.rint(target / _along(scale.astype(np.float64), weight.axis, ndim))
    return LatticeWeight(array=steps.astype(dtype), scale=scale.reshape(weight.scale.shape), axis=weight.axis)


def _along(scale: Real, axis: int | None, ndim: int) -> Real:
    if axis is None:
        return scale.reshape(())
    return scale.reshape([-1 if k == axis else 1 for k in range(ndim)])


def _at_least(scale: Real) -> NDArray[np.float32]:
    """The smallest float32 that is no less."""
    rounded = np.asarray(scale).astype(np.float32)
    return np.where(rounded < scale, np.nextafter(rounded, np.float32(np.inf)), rounded)
