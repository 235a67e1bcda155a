"""Feature metrics over arrays: the formulas of LPIPS, FID and the paper's similarities, for any backbone's features.

With our own judge as backbone they are LPIPS-toy and FD-toy, never LPIPS or FID. Source: docs/method.md section 7.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32] | NDArray[np.float64]
EPS = 1e-10


def lpips(a: Sequence[Floats], b: Sequence[Floats]) -> NDArray[np.float64]:
    """Per picture: unit-normalised channels, squared difference, mean over places, sum over levels, all weights 1.

    Args:
        a, b: feature maps by level, each `(N, C, h, w)`.

    Source: Zhang et al. 2018, Eq. 1.
    """
    total = np.zeros(len(a[0]))
    for x, y in zip(a, b, strict=True):
        p = x / (np.linalg.norm(x, axis=1, keepdims=True) + EPS)
        q = y / (np.linalg.norm(y, axis=1, keepdims=True) + EPS)
        total += ((p - q) ** 2).sum(1).mean((1, 2))
    return total


def _root(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    values, vectors = np.linalg.eigh(matrix)
    root: NDArray[np.float64] = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    return root


def frechet(a: Floats, b: Floats) -> float:
    """Frechet distance of two feature sets `(N, D)`: `|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^1/2)`.

    Source: Heusel et al. 2017, Eq. 6. Few samples bias it upwards: compare it only with a control of the same N.
    """
    x, y = a.astype(np.float64), b.astype(np.float64)
    # One sample has no spread: its covariance is 0, not a division by zero.
    ca, cb = (np.atleast_2d(np.cov(z, rowvar=False, ddof=min(1, len(z) - 1))) for z in (x, y))
    half = _root(ca)
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(half @ cb @ half), 0, None)).sum()
    return float(max(0.0, ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(ca) + np.trace(cb) - 2 * cross))


def cosine(a: Floats, b: Floats) -> NDArray[np.float64]:
    """Cosine per row of `(N, D)`; two zero rows agree (1)."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    na, nb = np.linalg.norm(x, axis=1), np.linalg.norm(y, axis=1)
    value = (x * y).sum(1) / np.maximum(na * nb, EPS)
    return np.where((na < EPS) & (nb < EPS), 1.0, value)


def direction(source: Floats, fp: Floats, quantized: Floats) -> NDArray[np.float64]:
    """sim_d per picture: cosine of the two edits as seen in feature space, `cos(E(y_q)-E(x), E(y_fp)-E(x))`."""
    return cosine(quantized - source, fp - source)


def structure(a: Floats, b: Floats) -> NDArray[np.float64]:
    """Structure loss per picture: MSE of the cosine self-similarity matrices of a feature map `(N, C, h, w)`."""

    def similarity(x: Floats) -> NDArray[np.float64]:
        flat = x.reshape(*x.shape[:2], -1).astype(np.float64)
        flat = flat / (np.linalg.norm(flat, axis=1, keepdims=True) + EPS)
        return np.asarray(np.einsum("ncp,ncq->npq", flat, flat))

    return np.asarray(((similarity(a) - similarity(b)) ** 2).mean((1, 2)))
