"""A weight at 4 bits, and the product of small rank that takes back what rounding took. Source: docs/method.md section 9.

    E = W - W4,    min |(E - Bc Ac) X|^2  over rank c:    Bc = U,  Ac = U^T E,    U the first c eigenvectors of  E H E^T

That is the best there is for the inputs seen, in closed form (Eckart and Young 1936, in the inputs' own metric). U comes by subspace
iteration (Halko, Martinsson and Tropp 2011), which asks for products with E and H alone.

| symbol | here |
|---|---|
| H = X X^T | `grams`, in runs of columns; see `quad.quantize.correct.rounding` |
| Ac, Bc | `Correction.a`, `Correction.b`, in bytes: rows and columns end at 127, and `scales` has the rest |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quad.core.correction import BYTE_END
from quad.core.encoding import Encoding, encode_range
from quad.quantize.correct.rounding import DAMPING, compensated_integers

BITS = 4
_TRIES, _STEP, _POWER = 24, 0.03, 2.4  # of ranges: each 3 % smaller than the first, by the error to this power
_ASKED = 2048  # weights of a row, evenly spread
_TURNS, _BEYOND = 6, 8  # of the subspace iteration, and directions beside those that are asked for


@dataclass(frozen=True, kw_only=True)
class Correction:
    """A layer's correction, `b diag(scales) a / 127^2`.

    Args:
        a: `(c, inputs)` int8.
        b: `(out, c)` int8.
        scales: `(c,)` float32.
    """

    a: NDArray[np.int8]
    b: NDArray[np.int8]
    scales: NDArray[np.float32]

    @property
    def product(self) -> NDArray[np.float64]:
        """`(out, inputs)`."""
        columns = self.b.astype(np.float64) * (self.scales.astype(np.float64) / BYTE_END**2)
        product: NDArray[np.float64] = columns @ self.a.astype(np.float64)
        return product


@dataclass(frozen=True, kw_only=True)
class FourBitWeight:
    """A weight `(out, in, *kernel)` as integers of 4 bits, and its correction; None for none."""

    integers: NDArray[np.integer]
    encoding: Encoding
    correction: Correction | None

    @property
    def values(self) -> NDArray[np.float64]:
        """The weight that a layer with its correction computes with."""
        weight = self.encoding.dequantize(self.integers).astype(np.float64)
        return weight if self.correction is None else weight + self.correction.product.reshape(weight.shape)


def four_bit_encoding(weight: NDArray[np.float32], *, signed: bool = False) -> Encoding:
    """Encoding of a weight `(out, ...)` for each output channel, in the range of least error; of long rows a part of the weights is asked.

    Args:
        signed: symmetric; else with a zero point.
    """
    rows = weight.reshape(len(weight), -1)
    low, high = np.minimum(rows.min(axis=1), 0.0), np.maximum(rows.max(axis=1), 0.0)
    asked = np.ascontiguousarray(rows[:, np.linspace(0, rows.shape[1] - 1, min(rows.shape[1], _ASKED)).astype(np.int64)])
    least, share = np.full(len(rows), np.inf), np.ones(len(rows))
    for attempt in range(_TRIES):
        tried = 1.0 - _STEP * attempt
        error = _rounding_error(asked, _encoding(low * tried, high * tried, signed))
        better = error < least
        least[better], share[better] = error[better], tried
    return _encoding(low * share, high * share, signed)


def _encoding(low: NDArray[np.floating], high: NDArray[np.floating], signed: bool) -> Encoding:
    return encode_range(low, high, bits=BITS, signed=signed, symmetric=signed, axis=0)


def _rounding_error(rows: NDArray[np.float32], encoding: Encoding) -> NDArray[np.float32]:
    """The cost of each row rounded to the nearest."""
    scale, zero = np.asarray(encoding.scale, np.float32)[:, None], np.asarray(encoding.zero_point, np.float32)[:, None]
    error = rows / scale
    np.rint(error, out=error)
    np.clip(error, encoding.qmin - zero, encoding.qmax - zero, out=error)
    error *= scale
    error -= rows
    np.abs(error, out=error)
    cost: NDArray[np.float32] = np.power(error, np.float32(_POWER), out=error).sum(axis=1)
    return cost


def four_bit_weight(
    weight: NDArray[np.float32], grams: Sequence[Tensor] | None, *, rank: int, metric: Sequence[Tensor], signed: bool = False
) -> FourBitWeight:
    """Round a weight to 4 bits and correct it.

    Args:
        weight: `(out, in, *kernel)`.
        grams: sums of `x x^T` that rounding makes up by; None rounds each weight to the nearest.
        rank: of the correction, 0 for none.
        metric: sums of `x x^T` that the correction is best for.
        signed: as of `four_bit_encoding`.
    """
    encoding = four_bit_encoding(weight, signed=signed)
    integers = encoding.quantize(weight) if grams is None else compensated_integers(weight, encoding, grams)
    error = (weight - encoding.dequantize(integers)).reshape(len(weight), -1).astype(np.float64)
    return FourBitWeight(integers=integers, encoding=encoding, correction=weighted_correction(error, metric, rank) if rank else None)


def weighted_correction(error: NDArray[np.float64], grams: Sequence[Tensor], rank: int) -> Correction:
    """The best product of that rank for an error `(out, inputs)` on inputs of these Gram matrices, in bytes."""
    matrix, metrics = torch.from_numpy(np.ascontiguousarray(error)), [_damped(gram) for gram in grams]
    outputs, rank = len(matrix), min(rank, *matrix.shape)
    start = torch.randn(outputs, min(rank + _BEYOND, outputs), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    basis = torch.linalg.qr(start).Q
    for _ in range(_TURNS):
        basis = torch.linalg.qr(_times(matrix, metrics, basis)).Q
    small = basis.T @ _times(matrix, metrics, basis)
    directions = basis @ torch.linalg.eigh((small + small.T) / 2).eigenvectors.flip(1)[:, :rank]
    return _in_bytes((directions.T @ matrix).numpy(), directions.numpy())


def _damped(gram: Tensor) -> Tensor:
    wide = gram.cpu().double()
    mean = float(wide.diagonal().mean())
    return wide + torch.eye(len(wide), dtype=wide.dtype) * (DAMPING * mean if mean > 0.0 else 1.0)


def _times(matrix: Tensor, metrics: Sequence[Tensor], basis: Tensor) -> Tensor:
    """`E H E^T` times some columns `(out, k)`."""
    parts = matrix.split([len(metric) for metric in metrics], dim=1)
    return torch.stack([part @ (metric @ (part.T @ basis)) for part, metric in zip(parts, metrics, strict=True)]).sum(dim=0)


def _in_bytes(a: NDArray[np.float64], b: NDArray[np.float64]) -> Correction:
    """Rows of A and columns of B stretched to the end of a byte."""
    size_a, size_b = np.abs(a).max(axis=1, initial=0.0), np.abs(b).max(axis=0, initial=0.0)
    alive = (size_a > 0.0) & (size_b > 0.0)
    size_a, size_b = np.where(alive, size_a, 1.0), np.where(alive, size_b, 1.0)
    rows, columns = np.rint(a / size_a[:, None] * BYTE_END), np.rint(b / size_b * BYTE_END)
    return Correction(a=rows.astype(np.int8), b=columns.astype(np.int8), scales=np.where(alive, size_a * size_b, 0.0).astype(np.float32))
