"""Signal-to-quantization-noise ratio in decibels, and how an adapter's effect comes through. Source: docs/method.md section 7.

| symbol | here |
|---|---|
| y, y~ | an array as it should be, and as it is |
| e, e~ | effect: the output with the adapter less that with the zero adapter, float and quantized |
| SQNR | `10 log10(|y|^2 / |y~ - y|^2)` |
| effect SQNR, gain | `10 log10(|e|^2 / |e~ - e|^2)`, `<e~, e> / <e, e>` (1 is right) |
| t_r, c_r | `<e, e>` and `<e~, e>` of one of n independent runs |
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CAP_DB = 200.0  # JSON knows no infinity
_LEAST_ENERGY = 1e-300
_LEAST_POWER = 1e-30  # of a mean square


def sqnr_db(signal: float, noise: float, cap_db: float = CAP_DB) -> float:
    """`10 log10(signal / noise)` of two energies, `cap_db` at most; that too where there is no noise."""
    return cap_db if noise <= 0.0 else min(10 * math.log10(max(signal, _LEAST_ENERGY) / noise), cap_db)


def array_sqnr_db(expected: NDArray[np.floating], actual: NDArray[np.floating]) -> float:
    """SQNR of `actual` against `expected`, any one shape; `CAP_DB` where they are equal."""
    signal = float(np.mean(np.square(expected, dtype=np.float64)))
    noise = float(np.mean(np.square(expected.astype(np.float64) - actual)))
    return sqnr_db(max(signal, _LEAST_POWER), noise)


def floored_sqnr_db(expected: NDArray[np.float64], actual: NDArray[np.float64]) -> float:
    """SQNR of which neither signal nor noise counts as less than a mean square of 1e-30: finite without a cap."""
    signal, noise = float(np.square(expected).mean()), float(np.square(expected - actual).mean())
    return sqnr_db(max(signal, _LEAST_POWER), max(noise, _LEAST_POWER), math.inf)


def relative_error(output: NDArray[np.floating], expected: NDArray[np.floating]) -> float:
    """RMS of the difference over RMS of `expected`."""
    rms = float(np.sqrt(np.mean(np.square(expected, dtype=np.float64))))
    return float(np.sqrt(np.mean(np.square(output - expected, dtype=np.float64)))) / max(rms, 1e-12)


@dataclass(frozen=True, kw_only=True)
class EffectEnergy:
    """Sums over the elements of an adapter's effect; those of several calls add.

    The sums themselves are taken where the arrays are: NumPy and torch add in other orders.

    Args:
        true: `<e, e>`.
        cross: `<e~, e>`.
        error: `|e~ - e|^2`.
    """

    true: float = 0.0
    cross: float = 0.0
    error: float = 0.0

    @classmethod
    def of(cls, true: NDArray[np.floating], actual: NDArray[np.floating]) -> EffectEnergy:
        """The sums of one call: `e` and `e~`, of one shape."""
        e, e_hat = true.astype(np.float64).ravel(), actual.astype(np.float64).ravel()
        return cls(true=float(e @ e), cross=float(e_hat @ e), error=float((e_hat - e) @ (e_hat - e)))

    def __add__(self, other: EffectEnergy) -> EffectEnergy:
        return EffectEnergy(true=self.true + other.true, cross=self.cross + other.cross, error=self.error + other.error)

    @property
    def gain(self) -> float:
        """How strong the effect is against the true one; below 1 the adapter is weak."""
        return self.cross / self.true

    def sqnr_db(self, cap_db: float = CAP_DB) -> float:
        """SQNR of the effect, dB."""
        return sqnr_db(self.true, self.error, cap_db)


def gain_error(runs: Sequence[EffectEnergy]) -> float | None:
    """Standard error of the gain of all runs together, `sqrt(n / (n - 1) sum (c_r - gain t_r)^2) / sum t_r`.

    Args:
        runs: of each independent run, the sums over its calls; calls of one run are alike.

    Returns:
        None of fewer than two runs.

    Source: Cochran 1977, Sampling Techniques, section 6.4 (the ratio of two totals).
    """
    n, total = len(runs), sum(runs, EffectEnergy())
    if n < 2 or total.true == 0.0:
        return None
    scatter = sum((run.cross - total.gain * run.true) ** 2 for run in runs)
    return math.sqrt(n / (n - 1) * scatter) / total.true
