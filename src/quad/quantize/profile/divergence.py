"""How far a quantized output is from the true one, as a Jensen-Shannon divergence in bits, 0 to 1.

Source: QUAD Eq. 8; docs/method.md section 4.

| symbol | here |
|---|---|
| y, y~ | `true`, `actual`: network outputs of the same inputs |
| sigma_t | `sigma`: standard deviation of the noise in x_t |
| d | `|y - y~| / sigma_t`, per element |

Two forms. *paired-Gaussian-JS* compares element by element: the divergence of N(y, sigma_t^2) and N(y~, sigma_t^2), which depends on d
alone. *hist-JS* is the paper's literal one. It compares histograms of all values and is blind to position: a shuffled output scores 0.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Values = NDArray[np.floating]

BINS = 64
MIN_VALUES = 16_384  # fewer fill 64 bins too thinly: the floor would hide everything
_FARTHEST, _KNOTS = 16.0, 4097  # at d = 16 the divergence is 1 to twelve digits
_SMALL_RATIO = 1.0 / (8.0 * np.log(2.0))  # JSD(d) / d^2 for d -> 0


def exact_jsd(d: float) -> float:
    """JSD in bits of N(0, 1) and N(d, 1), by quadrature: `1 - E_x log2(1 + exp(d x - d^2 / 2))` for x unit normal.

    Both halves of the divergence are equal by symmetry, so one integral is all; the trapezoid rule is exact to rounding for it.
    """
    x = np.linspace(-12.0, 12.0, 4801)
    density = np.exp(-0.5 * x * x) / np.sqrt(2.0 * np.pi)
    return float(1.0 - np.trapezoid(density * np.logaddexp(0.0, d * x - 0.5 * d * d), x) / np.log(2.0))


@lru_cache(maxsize=1)
def _ratios() -> tuple[Array, Array]:
    """Knots of d, and `JSD(d) / d^2` there: nearly straight, and exact for d -> 0 where the divergence itself would cancel."""
    knots = np.linspace(0.0, _FARTHEST, _KNOTS)
    ratios = np.array([_SMALL_RATIO if d < 0.01 else exact_jsd(float(d)) / d**2 for d in knots])
    return knots, ratios


def gaussian_jsd(d: Values) -> Array:
    """JSD in bits of N(0, 1) and N(d, 1) by table, any shape, `d >= 0`."""
    near = np.minimum(np.asarray(d, np.float64), _FARTHEST)
    knots, ratios = _ratios()
    # The chord of a convex curve lies above it, by less than 1e-6 here.
    return np.minimum(np.interp(near, knots, ratios) * near * near, 1.0)


def paired_gaussian_js(true: Values, actual: Values, sigma: float) -> float:
    """Mean paired-Gaussian-JS over all elements of one output; `true` and `actual` have one shape, `sigma > 0`."""
    return float(gaussian_jsd(np.abs(true.astype(np.float64) - actual) / sigma).mean())


def histogram_js(first: Values, second: Values, bins: int = BINS) -> float:
    """JSD in bits of the histograms of two sets of values over shared edges; any shapes, any sizes."""
    a, b = np.ravel(first), np.ravel(second)
    low, high = float(min(a.min(), b.min())), float(max(a.max(), b.max()))
    if low == high:
        return 0.0
    p, q = (np.histogram(values, bins, (low, high))[0] / values.size for values in (a, b))
    middle = (p + q) / 2.0
    return float((_relative_entropy(p, middle) + _relative_entropy(q, middle)) / 2.0)


def split_half_floor(values: Values, seed: int = 0) -> float:
    """Hist-JS of one random half of `values` against the other: what nothing but sampling gives."""
    mixed = np.random.default_rng(seed).permutation(np.ravel(values))
    half = mixed.size // 2
    return histogram_js(mixed[:half], mixed[half:])


def _relative_entropy(p: Array, q: Array) -> float:
    filled = p > 0.0
    return float((p[filled] * np.log2(p[filled] / q[filled])).sum())
