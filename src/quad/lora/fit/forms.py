"""Pairs of factors as matrices, and another pair for the same product by rotation. Source: docs/method.md section 3.

B A = (B G^-1)(G A)    for every invertible G (r, r)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quad.lora.adapter import LowRank

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Form:
    """One pair of factors of a product, as matrices: A `(r, in)` and B `(out, r)`; kernels count as inputs."""

    a: Matrix
    b: Matrix

    @property
    def peaks(self) -> tuple[Matrix, Matrix]:
        """Largest magnitude of every row of A and column of B, `(r,)` each."""
        return np.abs(self.a).max(axis=1, initial=0.0), np.abs(self.b).max(axis=0, initial=0.0)

    @property
    def alive(self) -> NDArray[np.bool_]:
        """Channels whose part of the product is not zero, `(r,)`."""
        peak_a, peak_b = self.peaks
        return np.asarray((peak_a > 0.0) & (peak_b > 0.0))

    def scaled(self, gains: Matrix | float) -> Form:
        """`(B G^-1)(G A)` for a diagonal G."""
        g = np.broadcast_to(np.asarray(gains, np.float64), (len(self.a),))
        return Form(self.a * g[:, None], self.b / g)

    def alive_only(self) -> Form:
        """With zeros in both factors where a channel's part of the product is zero."""
        alive = self.alive
        return self if alive.all() else Form(self.a * alive[:, None], self.b * alive)


def form_of(pair: LowRank) -> Form:
    """A pair's matrices in double precision."""
    return Form(pair.a.reshape(len(pair.a), -1).astype(np.float64), pair.b.reshape(len(pair.b), -1).astype(np.float64))


def pair_of(form: Form, like: LowRank) -> LowRank:
    """The matrices as a pair of this shape."""
    return LowRank(form.a.reshape(like.a.shape).astype(np.float32), form.b.reshape(like.b.shape).astype(np.float32))


def rotate(form: Form) -> Form:
    """The balanced singular value decomposition, its energy spread evenly over the channels."""
    orthogonal_a, triangle_a = np.linalg.qr(form.a.T)
    orthogonal_b, triangle_b = np.linalg.qr(form.b)
    left, values, right = np.linalg.svd(triangle_b @ triangle_a.T, full_matrices=False)
    # A decomposition leaves the signs open; fixed ones make the form a function of the product.
    signs = np.where(right.sum(axis=1) < 0.0, -1.0, 1.0)
    half, spread = np.sqrt(values), _spread(len(form.a))[:, : len(values)]
    down = (half * signs)[:, None] * (right @ orthogonal_a.T)
    return Form(spread @ down, (orthogonal_b @ left) * (half * signs) @ spread.T)


def _spread(rank: int) -> Matrix:
    """An orthogonal matrix `(r, r)` of entries near `1/sqrt(r)`: Hadamard's where the rank is a power of two, else the cosine transform."""
    if rank & (rank - 1) == 0:
        matrix = np.ones((1, 1))
        while len(matrix) < rank:
            matrix = np.block([[matrix, matrix], [matrix, -matrix]])
        return np.asarray(matrix / np.sqrt(rank))
    k, j = np.arange(rank)[None, :], np.arange(rank)[:, None]
    cosines = np.sqrt(2.0 / rank) * np.cos(np.pi * (2 * j + 1) * k / (2 * rank))
    cosines[:, 0] /= np.sqrt(2.0)
    return np.asarray(cosines)
