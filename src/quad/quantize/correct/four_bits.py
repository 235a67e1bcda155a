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
_POWER = np.float32(2.4)  # of the error, which the range of a channel is chosen by
# Ranges that are tried, as shares of the whole: some from all of it to a third, then those beside the best of them.
_SPREAD, _NEAR = tuple(-0.09 * tried for tried in range(8)), (-0.06, -0.03, 0.03, 0.06)
_TOGETHER = 2**15  # weights that are rounded at once
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


@dataclass(frozen=True, kw_only=True)
class FourBitWeight:
    """A weight `(out, in, *kernel)` as integers of 4 bits, and its correction; None for none."""

    integers: NDArray[np.integer]
    encoding: Encoding
    correction: Correction | None


def four_bit_encoding(weight: NDArray[np.float32], *, signed: bool = False) -> Encoding:
    """Encoding of a weight `(out, ...)` for each output channel, in the range of least error; of long rows a part of the weights is asked.

    Args:
        signed: symmetric; else with a zero point.
    """
    rows = weight.reshape(len(weight), -1)
    low, high = np.minimum(rows.min(axis=1), 0.0), np.maximum(rows.max(axis=1), 0.0)
    asked = np.ascontiguousarray(rows[:, np.linspace(0, rows.shape[1] - 1, min(rows.shape[1], _ASKED)).astype(np.int64)])
    shares, costs = np.empty((0, len(rows))), np.empty((0, len(rows)), np.float32)
    for tried in _SPREAD, _NEAR:
        best = shares[costs.argmin(axis=0), np.arange(len(rows))] if len(shares) else 1.0
        more = np.minimum(best + np.array(tried)[:, None] * np.ones(len(rows)), 1.0)
        shares = np.concatenate([shares, more])
        costs = np.concatenate([costs, _rounding_costs(asked, [_encoding(low * share, high * share, signed) for share in more])])
    share = shares[costs.argmin(axis=0), np.arange(len(rows))]
    return _encoding(low * share, high * share, signed)


def _encoding(low: NDArray[np.floating], high: NDArray[np.floating], signed: bool) -> Encoding:
    return encode_range(low, high, bits=BITS, signed=signed, symmetric=signed, axis=0)


def _rounding_costs(rows: NDArray[np.float32], encodings: Sequence[Encoding]) -> NDArray[np.float32]:
    """The cost of each row rounded to the nearest, by each encoding; some rows at a time, which stay in the processor's cache."""
    costs, together = np.empty((len(encodings), len(rows)), np.float32), max(1, _TOGETHER // max(1, rows.shape[1]))
    whole, rounded = np.empty((2, together, rows.shape[1]), np.float32)
    with np.errstate(divide="ignore"):  # nothing, to any power, is nothing
        for cost, encoding in zip(costs, encodings, strict=True):
            scale, zero = np.asarray(encoding.scale, np.float32)[:, None], np.asarray(encoding.zero_point, np.float32)[:, None]
            steps, low, high = 1.0 / scale, encoding.qmin - zero, encoding.qmax - zero
            for some in (slice(first, first + together) for first in range(0, len(rows), together)):
                exact, error = (memory[: len(rows[some])] for memory in (whole, rounded))
                np.multiply(rows[some], steps[some], out=exact)
                np.rint(exact, out=error)
                np.maximum(error, low[some], out=error)  # np.clip takes three times as long
                np.minimum(error, high[some], out=error)
                error -= exact
                np.abs(error, out=error)
                np.log2(error, out=error)
                error *= _POWER
                cost[some] = np.exp2(error, out=error).sum(axis=1)
            cost *= scale[:, 0] ** _POWER
    return costs


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
    correction = None
    if rank:
        error = (weight - encoding.dequantize(integers)).reshape(len(weight), -1)
        correction = weighted_correction(error, metric, rank)
    return FourBitWeight(integers=integers, encoding=encoding, correction=correction)


def weighted_correction(error: NDArray[np.floating], grams: Sequence[Tensor], rank: int) -> Correction:
    """The best product of that rank for an error `(out, inputs)` on inputs of these Gram matrices, in bytes.

    In float32, which finds what float64 finds of `|E X|^2` to four digits in a fifth of the time.
    """
    matrix, metrics = torch.from_numpy(np.ascontiguousarray(error, np.float32)), [_damped(gram) for gram in grams]
    outputs, rank = len(matrix), min(rank, *matrix.shape)
    start = torch.randn(outputs, min(rank + _BEYOND, outputs), generator=torch.Generator().manual_seed(0))
    basis = torch.linalg.qr(start).Q
    for _ in range(_TURNS):
        basis = torch.linalg.qr(_times(matrix, metrics, basis)).Q
    small = basis.T @ _times(matrix, metrics, basis)
    directions = basis @ torch.linalg.eigh((small + small.T) / 2).eigenvectors.flip(1)[:, :rank]
    return _in_bytes((directions.T @ matrix).numpy(), directions.numpy())


def _damped(gram: Tensor) -> Tensor:
    damped = gram.detach().float().cpu().clone()
    mean = float(damped.diagonal().mean())
    damped.diagonal().add_(DAMPING * mean if mean > 0.0 else 1.0)
    return damped


def _times(matrix: Tensor, metrics: Sequence[Tensor], basis: Tensor) -> Tensor:
    """`E H E^T` times some columns `(out, k)`."""
    parts = matrix.split([len(metric) for metric in metrics], dim=1)
    return torch.stack([part @ (metric @ (part.T @ basis)) for part, metric in zip(parts, metrics, strict=True)]).sum(dim=0)


def _in_bytes(a: NDArray[np.float32], b: NDArray[np.float32]) -> Correction:
    """Rows of A and columns of B stretched to the end of a byte."""
    size_a, size_b = np.abs(a).max(axis=1, initial=0.0), np.abs(b).max(axis=0, initial=0.0)
    alive = (size_a > 0.0) & (size_b > 0.0)
    size_a, size_b = np.where(alive, size_a, 1.0), np.where(alive, size_b, 1.0)
    rows, columns = np.rint(a / size_a[:, None] * BYTE_END), np.rint(b / size_b * BYTE_END)
    return Correction(a=rows.astype(np.int8), b=columns.astype(np.int8), scales=np.where(alive, size_a * size_b, 0.0).astype(np.float32))
