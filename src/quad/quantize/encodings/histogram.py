"""A histogram that grows with its data, of fixed size, whose sums are exact.

Bins are `2**exponent` wide and begin at whole multiples of their width. A wider range doubles the width by adding neighbours, so that no
count is ever shared out, and histograms of different sources come to one width and add without loss. What a large array adds is estimated
from a sample of it. Source: docs/adr/0077-one-side-in-batches.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

BINS = 2048
_TOGETHER = 2**16  # values that are counted at once: what they become on the way stays in the processor's cache
# Of arrays of so many values one in so many is counted, for as many: primes, of which channels and tokens are seldom a multiple.
_STRIDES = ((2**22, 61), (2**19, 13))
_ROW = 2**12  # values, of which those far out are looked for where one of them is
_FAR = 0.75  # of the largest magnitude: from there on all values are counted
_FINEST = -60  # widths below 2**-60 are far under the smallest scale, 1e-8


@final
class Histogram:
    """Counts of a stream of finite numbers: `BINS` counters, smallest, largest, how many."""

    def __init__(self, bins: int = BINS) -> None:
        self.bins = bins
        self.exponent = _FINEST
        self.origin = 0
        self.counts = np.zeros(bins, dtype=np.int64)
        self.low = math.inf
        self.high = -math.inf
        self.total = 0

    @property
    def fields(self) -> tuple[int, int, float, float, int]:
        """All but the counts: exponent, origin, smallest and largest value, number of values."""
        return self.exponent, self.origin, self.low, self.high, self.total

    @classmethod
    def restore(cls, counts: NDArray[np.int64], fields: tuple[int, int, float, float, int]) -> Histogram:
        """A histogram that goes on where another was, by its counts and `fields`."""
        histogram = cls(len(counts))
        histogram.counts = counts
        histogram.exponent, histogram.origin, histogram.low, histogram.high, histogram.total = fields
        return histogram

    def add(self, values: NDArray[np.floating]) -> None:
        """Count `values` (any shape); of a large array some of those in the middle, and all that are far out.

        A range is chosen by where values end and by how many are far out, and millions of one call say no more of the rest than thousands.

        Raises:
            ValueError: a value is NaN or infinite.
        """
        if values.size == 0:
            return
        flat = values.reshape(-1)
        stride = next((stride for least, stride in _STRIDES if flat.size >= least), 1)
        rows = _Rows.of(flat)
        low, high = float(rows.lows.min()), float(rows.highs.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError("values hold NaN or Inf")
        self._grow(min(low, self.low), max(high, self.high))
        counts = self._binned(flat) if stride == 1 else self._estimated(rows, stride)
        self.counts += counts
        self.total += int(counts.sum())

    def _estimated(self, rows: _Rows, stride: int) -> NDArray[np.int64]:
        """How many values each bin has, by one in `stride` of them; of those far out, all."""
        far = _FAR * max(abs(self.low), abs(self.high))
        few = rows.flat[self.total % stride :: stride]
        return stride * self._binned(few[np.abs(few) <= far]) + self._binned(rows.beyond(far))

    def _binned(self, flat: NDArray[np.floating]) -> NDArray[np.int64]:
        """How many of these values each bin has."""
        counts, width = np.zeros(self.bins, dtype=np.int64), 2.0**self.exponent
        for first in range(0, flat.size, _TOGETHER):
            # Exact in the values' own type, since a width is a power of two and a bin's number is small; where a width is over 1, the
            # smallest values become zero.
            part = flat[first : first + _TOGETHER]
            index = (part if self.exponent <= 0 else part.astype(np.float64)) / width
            np.floor(index, out=index)
            index -= self.origin
            counts += np.bincount(index.astype(np.int64), minlength=self.bins)
        return counts

    def merge(self, other: Histogram) -> None:
        """Count what another one of as many bins has counted."""
        if other.total == 0:
            return
        self._grow(min(other.low, self.low), max(other.high, self.high), other.exponent)
        self.counts += other._rebinned(self.exponent, self.origin)
        self.total += other.total

    def _grow(self, low: float, high: float, finest: int = _FINEST) -> None:
        """Make room for `[low, high]`: coarsen until it fits, then slide so that it is inside; no bin becomes finer than `2**finest`."""
        span = max(high - low, abs(low), abs(high)) if self.total == 0 else high - low
        exponent = max(self.exponent, finest, math.frexp(span / self.bins)[1] - 1 if span > 0 else _FINEST)
        while _bin(high, exponent) - _bin(low, exponent) >= self.bins:
            exponent += 1
        origin = _bin(low, exponent)
        if self.total and exponent == self.exponent and self.origin <= origin and _bin(high, exponent) < self.origin + self.bins:
            origin = self.origin
        elif self.total:
            self.counts = self._rebinned(exponent, origin)
        self.exponent, self.origin, self.low, self.high = exponent, origin, low, high

    def _rebinned(self, exponent: int, origin: int) -> NDArray[np.int64]:
        filled = np.flatnonzero(self.counts)
        target = ((filled + self.origin) >> (exponent - self.exponent)) - origin
        return np.bincount(target, weights=self.counts[filled], minlength=self.bins).astype(np.int64)


@dataclass(frozen=True)
class _Rows:
    """Values in rows, the last one shorter, with the smallest and the largest of each."""

    flat: NDArray[np.floating]
    lows: NDArray[np.floating]
    highs: NDArray[np.floating]

    @staticmethod
    def of(flat: NDArray[np.floating]) -> _Rows:
        whole = flat.size // _ROW * _ROW
        parts = [flat[first : min(first + _TOGETHER, whole)].reshape(-1, _ROW) for first in range(0, whole, _TOGETHER)]
        parts += [flat[whole:].reshape(1, -1)] if whole < flat.size else []
        extremes = [(part.min(axis=1), part.max(axis=1)) for part in parts]
        return _Rows(flat, *map(np.concatenate, zip(*extremes, strict=True)))

    def beyond(self, far: float) -> NDArray[np.floating]:
        """The values whose magnitude is larger than that."""
        numbers = np.flatnonzero((self.lows < -far) | (self.highs > far))
        parts = (self.flat[number * _ROW : (number + 1) * _ROW] for number in numbers)
        return np.concatenate([self.flat[:0], *(part[np.abs(part) > far] for part in parts)])


def _bin(value: float, exponent: int) -> int:
    return math.floor(math.ldexp(value, -exponent))


@dataclass(frozen=True, kw_only=True)
class Density:
    """How the values of one tensor are spread, for choosing its range.

    Args:
        centers: middle of each filled bin, ascending.
        mass: share of each bin, sums to 1.
        low, high: smallest and largest value seen.
    """

    centers: NDArray[np.float64]
    mass: NDArray[np.float64]
    low: float
    high: float


def pool(histograms: Sequence[Histogram]) -> Density:
    """The equal-weight mixture of several histograms, whatever the number of values in each.

    A source that is exactly zero everywhere (the LoRA branch of the base itself) is exact under every encoding, so it has no vote while
    others have one.

    Raises:
        ValueError: there is no value at all.
    """
    filled = [h for h in histograms if h.total]
    if not filled:
        raise ValueError("no values were seen")
    filled = [h for h in filled if h.low != 0.0 or h.high != 0.0] or filled
    exponent = max(h.exponent for h in filled)
    indices: list[NDArray[np.int64]] = []
    shares: list[NDArray[np.float64]] = []
    for h in filled:
        bins_used = np.flatnonzero(h.counts)
        indices.append((bins_used + h.origin) >> (exponent - h.exponent))
        shares.append(h.counts[bins_used] / (h.total * len(filled)))
    bins, place = np.unique(np.concatenate(indices), return_inverse=True)
    mass = np.bincount(place, weights=np.concatenate(shares), minlength=len(bins)).astype(np.float64)
    centers = np.ldexp(bins.astype(np.float64) + 0.5, exponent)
    return Density(centers=centers, mass=mass, low=min(h.low for h in filled), high=max(h.high for h in filled))
