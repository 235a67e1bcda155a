"""The nearest product of a slot's rank to a sum of products that has more, in the units of the slot's lattice.

    sum_i w_i B_i A_i = B A = Q_B (R_B R_A^T) Q_A^T = (Q_B U) S (Q_A V)^T      kept: the largest of S, as many as the slot has ranks

| symbol | here |
|---|---|
| A, B | the parts' factors side by side, `(n, in)` and `(out, n)`, the weights in B; kernels count as inputs |
| Q, R | orthogonal and triangular factor of A^T and of B |
| U, S, V | singular value decomposition of the core `R_B R_A^T` |
| H | an orthogonal matrix that gives every channel a like share of all singular values |
| g_k | gain of channel k: `B A = (B / g)(g A)` |

Every A of a slot has one step, and every B: integers are the real numbers in units of them. Rounding adds errors of one variance to all
entries; channel k of the product is expected to err least at `g_k^2 = sqrt(in / out) |b_k| / |a_k|`. H is needed: without it the largest
singular value leaves the lattice (reference model, pairs of its adapters: up to 0.63 of a slot's product lost by clipping, with it 2e-4).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

# How much longer a row of A may become than the longest of the parts, whose A x was encoded with room to spare; as in alignment.
MID_ROOM = 2.0**0.5
_NOISE = 1e-12  # singular values below this share of the largest are none


@dataclass(frozen=True)
class Nearest:
    """Factors `(r, in)` and `(out, r)`, not rounded, and which share of the sum's energy `|B A|^2` they keep."""

    a: Matrix
    b: Matrix
    energy: float


def nearest(a: Matrix, b: Matrix, rank: int, largest: float) -> Nearest:
    """The best product of `rank` channels, of fewer where the sum has no more.

    Args:
        a, b: `(n, in)` and `(out, n)`.
        largest: magnitude that entries may have, infinite for floats. Where a channel can keep to it in A or in B only, it does so in A.
    """
    orthogonal_a, triangle_a = np.linalg.qr(a.T)
    orthogonal_b, triangle_b = np.linalg.qr(b)
    left, values, right = np.linalg.svd(triangle_b @ triangle_a.T, full_matrices=False)
    total = float(np.square(values).sum())
    largest_values = values[:rank][values[:rank] > _NOISE * values.max(initial=0.0)]
    half, even = np.sqrt(largest_values), _even(len(largest_values))
    down = even @ (half[:, None] * (right[: len(half)] @ orthogonal_a.T))
    up = ((orthogonal_b @ left[:, : len(half)]) * half) @ even.T
    longest = MID_ROOM * float(np.linalg.norm(a, axis=1).max(initial=0.0))
    gains = _gains(down, up, longest, largest)
    return Nearest(down * gains[:, None], up / gains, float(np.square(largest_values).sum()) / total if total else 1.0)


def _gains(a: Matrix, b: Matrix, longest: float, largest: float) -> Matrix:
    """g of every channel, `(r,)`: the one of least error, within what A, B and A x can hold."""
    length_a, length_b = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=0)
    peak_a, peak_b = np.abs(a).max(axis=1, initial=0.0), np.abs(b).max(axis=0, initial=0.0)
    best = np.sqrt(np.sqrt(a.shape[1] / len(b)) * length_b / length_a)
    return np.asarray(np.minimum(np.maximum(best, peak_b / largest), np.minimum(largest / peak_a, longest / length_a)))


def _even(rank: int) -> Matrix:
    """H `(rank, rank)`: the orthogonal cosine transform."""
    k, j = np.arange(rank)[None, :], np.arange(rank)[:, None]
    cosines = np.sqrt(2.0 / max(rank, 1)) * np.cos(np.pi * (2 * j + 1) * k / (2 * max(rank, 1)))
    cosines[:, :1] /= np.sqrt(2.0)
    return np.asarray(cosines)
