"""Choosing the range of a tensor: smallest-largest, percentile, or least error. Source: docs/method.md section 5, step 2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from quad.core.encoding import Encoding, encode_range
from quad.core.margins import ACTIVATION, NO_MARGIN, Margin, widen
from quad.quantize.encodings.histogram import Density

RangeMethod = Literal["minmax", "percentile", "mse"]


@dataclass(frozen=True, kw_only=True)
class RangeOptions:
    """How ranges are chosen.

    Args:
        method: `mse` searches for the least mean `|T - T_hat|^p`.
        p: the power of the error; 2.4 minds clipping a little more than the square does.
        tries: how many sizes are tried, each 1 % smaller than the first.
        percentile: share in percent that `percentile` keeps at either end.
        margin: of 16-bit activations.
    """

    method: RangeMethod = "mse"
    p: float = 2.4
    tries: int = 80
    percentile: float = 99.99
    margin: Margin = ACTIVATION


def choose_range(density: Density, bits: int, options: RangeOptions) -> tuple[float, float]:
    """The `(low, high)` to encode a tensor of this density with, zero inside."""
    low, high = min(density.low, 0.0), max(density.high, 0.0)
    if options.method == "percentile":
        low, high = _percentile_range(density, options.percentile)
    elif options.method == "mse":
        low, high = _least_error_range(density, bits, options)
    return widen((low, high), options.margin if bits >= 16 else NO_MARGIN)


def _percentile_range(density: Density, percent: float) -> tuple[float, float]:
    below = np.cumsum(density.mass)
    cut = 1.0 - percent / 100.0
    low = density.centers[int(np.searchsorted(below, cut, side="right").clip(max=len(below) - 1))]
    high = density.centers[int(np.searchsorted(below, 1.0 - cut, side="left").clip(max=len(below) - 1))]
    # A bin's middle may lie beyond the outermost value in it.
    return min(max(float(low), density.low), 0.0), max(min(float(high), density.high), 0.0)


def _least_error_range(density: Density, bits: int, options: RangeOptions) -> tuple[float, float]:
    """Shrink both ends together, then either end alone: the two sides of an activation are seldom alike."""
    best = (min(density.low, 0.0), max(density.high, 0.0))
    for shrink_low, shrink_high in ((0.01, 0.01), (0.01, 0.0), (0.0, 0.01)):
        low, high = best
        least = expected_error(density, best, bits, options.p)
        for attempt in range(1, options.tries):
            bounds = low * (1.0 - shrink_low * attempt), high * (1.0 - shrink_high * attempt)
            clipped = clipping_error(density, bounds, options.p)
            if clipped >= least:
                break  # a smaller range clips still more: at 16 bits the search ends here at once
            error = clipped + rounding_error(density, bounds, bits, options.p)
            if error < least:
                best, least = bounds, error
    return best


def clipping_error(density: Density, bounds: tuple[float, float], p: float) -> float:
    """The part of clipping in `E|T - T_hat|^p`."""
    low, high = bounds
    first, last = np.searchsorted(density.centers, [low, high])
    below, above = (low - density.centers[:first]) ** p, (density.centers[last:] - high) ** p
    return float(density.mass[:first] @ below + density.mass[last:] @ above)


def rounding_error(density: Density, bounds: tuple[float, float], bits: int, p: float) -> float:
    """The part of rounding: the error is uniform in `+-s/2` inside the bounds, which gives `(s/2)^p / (p+1)`."""
    low, high = bounds
    half = (high - low) / (2**bits - 1) / 2.0
    first, last = np.searchsorted(density.centers, [low, high])
    return float(density.mass[first:last].sum() * half**p / (p + 1.0))


def expected_error(density: Density, bounds: tuple[float, float], bits: int, p: float) -> float:
    """`E|T - T_hat|^p` of a density encoded with `bounds`."""
    return clipping_error(density, bounds, p) + rounding_error(density, bounds, bits, p)


def weight_encoding(weight: NDArray[np.float32], bits: int, options: RangeOptions) -> Encoding:
    """Signed symmetric encoding of a weight `(out, ...)` per output channel, axis 0.

    Below 16 bits each channel's range is the one of least error `sum |W - W_hat|^p` (with `mse`); at 16 bits nothing is gained by clipping.

    Raises:
        ValueError: the weight holds NaN or Inf.
    """
    rows = np.abs(weight.reshape(weight.shape[0], -1))
    largest = rows.max(axis=1, initial=0.0)
    if options.method == "mse" and bits < 16:
        largest = largest * _row_shares(rows, largest, bits, options)
    return encode_range(-largest, largest, bits=bits, signed=True, symmetric=True, axis=0)


def column_encoding(table: NDArray[np.float32]) -> Encoding:
    """Signed symmetric encoding of a table `(rows, columns)` in bytes, axis 1: the range of each column holds all of it."""
    largest = np.abs(table).max(axis=0, initial=0.0)
    return encode_range(-largest, largest, bits=8, signed=True, symmetric=True, axis=1)


_PATIENCE = 8  # tries without gain in any channel, after which smaller ranges only lose more
_TOGETHER = 2**16  # values that are tried at once: what they become on the way stays in the processor's cache


def _row_shares(rows: NDArray[np.float32], largest: NDArray[np.float32], bits: int, options: RangeOptions) -> NDArray[np.float32]:
    """The share of its largest magnitude that each row keeps, `(rows,)` in `(0, 1]`."""
    levels = 2 ** (bits - 1) - 1
    best, shares, stale = np.full(len(rows), np.inf), np.ones(len(rows), dtype=np.float32), 0
    for attempt in range(options.tries):
        share = np.float32(1.0 - 0.01 * attempt)
        scale = np.maximum(largest * share / levels, 1e-8)
        error = _rounding_errors(rows, scale, levels, np.float32(options.p))
        better = error < best
        shares[better] = share
        best = np.minimum(best, error)
        stale = 0 if better.any() else stale + 1
        if stale >= _PATIENCE:
            break
    return shares


def _rounding_errors(rows: NDArray[np.float32], scale: NDArray[np.float32], levels: int, p: np.float32) -> NDArray[np.float64]:
    """`sum |W - W_hat|^p` of each row of magnitudes, `(rows,)`.

    Args:
        scale: of each row, `(rows,)`.
        levels: the largest integer.
    """
    together = max(1, _TOGETHER // max(1, rows.shape[1]))
    sums, memory = np.empty(len(rows)), np.empty((min(together, len(rows)), rows.shape[1]), np.float32)
    for first in range(0, len(rows), together):
        part, step = rows[first : first + together], scale[first : first + together, None]
        error = memory[: len(part)]
        np.rint(np.divide(part, step, out=error), out=error)
        np.multiply(np.minimum(error, levels, out=error), step, out=error)
        np.abs(np.subtract(error, part, out=error), out=error)
        # Powers of the error in steps, not in weights: those of small weights would underflow in float32.
        np.power(np.divide(error, step, out=error), p, out=error)
        sums[first : first + together] = error.sum(axis=1, dtype=np.float64)
    powers: NDArray[np.float64] = sums * scale.astype(np.float64) ** float(p)
    return powers
