"""The best matrices of a lower rank, and how much of an update they keep.

An update is a matrix `D (out, n)`, `n` the layer's inputs times its kernel. Of all matrices of rank r its singular value decomposition cut
at r is nearest to it, and keeps the share `sum_{i<=r} s_i^2 / sum_i s_i^2` of its energy. Source: Eckart and Young 1936. Three forms are
cut without ever writing `D` out where that is not needed: a product by QR of both factors, a Kronecker product by the decompositions of
its two factors, whose singular values multiply.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from quad.core.errors import UsageError, mismatch

MIN_ENERGY = 0.9
CONVERTED_ENERGY = 0.999  # share of an update that is converted: the smallest rank that keeps so much
CONVERTED_RANK = 128
MOST_RANK = 4096  # more than any layer has inputs for

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class RankLimits:
    """How far an update may be cut.

    Args:
        max_rank: no module gets a larger one; None leaves LoRA as it is.
        min_energy: an adapter with a module that keeps less is refused.
        converted_rank: the largest of a converted module where `max_rank` is None.
        converted_energy: share of its energy that a converted module keeps, where its rank is enough.
    """

    max_rank: int | None = None
    min_energy: float = MIN_ENERGY
    converted_rank: int = CONVERTED_RANK
    _: KW_ONLY
    converted_energy: float = CONVERTED_ENERGY

    def check(self, option: str = "--max-rank") -> None:
        """Refuse values outside their range.

        Args:
            option: that gave the rank.

        Raises:
            UsageError: with the option's name.
        """
        if self.max_rank is not None and not 1 <= self.max_rank <= MOST_RANK:
            raise UsageError(mismatch(option, f"1 to {MOST_RANK}", self.max_rank, "choose one between"))
        if not 0 <= self.min_energy <= 1:
            raise UsageError(mismatch("--min-energy", "0 to 1", self.min_energy, "choose one between"))


WHOLE = RankLimits(converted_rank=MOST_RANK, converted_energy=1.0)  # nothing is lost


@dataclass(frozen=True, kw_only=True)
class Cut:
    """An update at a lower rank, with equal halves of each singular value.

    Args:
        b, a: `(out, r)` and `(r, n)`.
        energy: share of the update's that they keep.
        enough: the rank that would keep all that was asked for.
    """

    b: Matrix
    a: Matrix
    energy: float
    enough: int


class Update(Protocol):
    """A module's change of weights, in the form that its file has it."""

    def dense(self) -> Matrix:
        """All of it, `(out, n)`."""
        ...

    def cut(self, max_rank: int, keep: float = 1.0) -> Cut:
        """The smallest rank that keeps the share `keep` of the energy, at most `max_rank` and at least 1."""
        ...


@dataclass(frozen=True, kw_only=True)
class _Spectrum:
    """Where to cut, by squared singular values, largest first.

    Args:
        rank: to cut at. enough: rank that would keep all that was asked for. energy: share kept.
    """

    rank: int
    enough: int
    energy: float

    @classmethod
    def of(cls, squares: Matrix, total: float, max_rank: int, keep: float) -> _Spectrum:
        """Of all squares; those that rounding alone left are worth no rank."""
        real = int(np.count_nonzero(squares > total * 1e-24))
        enough = max(1, min(int(np.searchsorted(np.cumsum(squares), keep * total * (1 - 1e-12))) + 1, real))
        rank = min(enough, max_rank)
        return cls(rank=rank, enough=enough, energy=min(1.0, float(squares[:rank].sum() / total)) if total else 1.0)

    def halves(self, u: Matrix, s: Matrix, vh: Matrix) -> Cut:
        """Singular vectors and values of that rank as two matrices."""
        root = np.sqrt(s)
        return Cut(b=u * root, a=root[:, None] * vh, energy=self.energy, enough=self.enough)


@dataclass(frozen=True)
class Dense:
    """An update written out, `(out, n)`."""

    matrix: Matrix

    def dense(self) -> Matrix:
        return self.matrix

    def cut(self, max_rank: int, keep: float = 1.0) -> Cut:
        """By the eigenvalues of `D D^T`, on the smaller side."""
        wide = self.matrix.shape[0] <= self.matrix.shape[1]
        d = self.matrix if wide else self.matrix.T
        values, vectors = np.linalg.eigh(d @ d.T)
        squares, u = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
        spectrum = _Spectrum.of(squares, float(np.sum(d * d)), max_rank, keep)
        rank = spectrum.rank
        s = np.sqrt(squares[:rank])
        vh = (u[:, :rank].T @ d) / np.where(s > 0, s, 1.0)[:, None]
        return spectrum.halves(u[:, :rank], s, vh) if wide else spectrum.halves(vh.T, s, u[:, :rank].T)


@dataclass(frozen=True)
class Product:
    """An update as two matrices, `b (out, r)` and `a (r, n)`."""

    b: Matrix
    a: Matrix

    def dense(self) -> Matrix:
        product: Matrix = self.b @ self.a
        return product

    def cut(self, max_rank: int, keep: float = 1.0) -> Cut:
        """By QR of both factors and the decomposition of the small matrix between them."""
        if self.b.shape[1] >= min(self.b.shape[0], self.a.shape[1]):
            return Dense(self.dense()).cut(max_rank, keep)
        qb, rb = np.linalg.qr(self.b)
        qa, ra = np.linalg.qr(self.a.T)
        u, s, vh = np.linalg.svd(rb @ ra.T)
        spectrum = _Spectrum.of(s * s, float((s * s).sum()), max_rank, keep)
        rank = spectrum.rank
        return spectrum.halves(qb @ u[:, :rank], s[:rank], vh[:rank] @ qa.T)


@dataclass(frozen=True)
class Kronecker:
    """An update as `kron(first, second)`, both matrices."""

    first: Matrix
    second: Matrix

    def dense(self) -> Matrix:
        product: Matrix = np.kron(self.first, self.second).astype(np.float64)
        return product

    def cut(self, max_rank: int, keep: float = 1.0) -> Cut:
        """By the decompositions of both factors, whose singular values multiply."""
        u1, s1, v1 = np.linalg.svd(self.first, full_matrices=False)
        u2, s2, v2 = np.linalg.svd(self.second, full_matrices=False)
        s = np.outer(s1, s2).ravel()
        order = np.argsort(-s, kind="stable")
        squares = (s * s)[order]
        spectrum = _Spectrum.of(squares, float(squares.sum()), max_rank, keep)
        rank = spectrum.rank
        i, j = np.divmod(order[:rank], s2.size)
        u = (u1[:, None, i] * u2[None, :, j]).reshape(-1, rank)
        vh = (v1[i][:, :, None] * v2[j][:, None, :]).reshape(rank, -1)
        return spectrum.halves(u, s[order[:rank]], vh)
