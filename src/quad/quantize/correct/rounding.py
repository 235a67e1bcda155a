"""Rounding weights to integers so that their errors cancel on real inputs: each column makes up for those before it.

Rounding each weight to the nearest integer is best for weights, not for outputs: inputs are correlated, so an error in one column can be
taken back in another. The least `|(W - W_hat) X|^2` over integers is a nearest point of a lattice. Babai's nearest plane comes near it:
column by column, with what is left of the columns before counted into the next one.

Source: Babai 1986; Frantar et al. 2022 (GPTQ), which is the same rule by another factor (Chen et al. 2025, arXiv 2507.18553);
docs/method.md section 5, step 1.

    H = X X^T + damping I = L L^T,  |(W - W_hat) X|^2 ~ |D L|^2,  D = W - W_hat
    (D L)_j = L_jj (d_j + sum_{i>j} d_i L_ij / L_jj),  so, the last column first,  q_j = round( w_j + sum_{i>j} d_i L_ij / L_jj )

| symbol | here |
|---|---|
| H | `gram`, of a layer's inputs, the taps of a convolution side by side |
| L | `factor`, Cholesky's, lower |
| w_j, q_j, d_j | column j of the weight in steps, its integers, their difference |

Columns of much input are the last in order, and rounded first: what those after them cannot take back is small.

float32 is enough: against float64 the error `|D L|^2` is within 0.02 dB, the worst for inputs whose mean is 300 times their deviation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quad.core.encoding import Encoding

DAMPING = 0.01  # of the mean energy of a column: inputs that calibration has not seen are not zero
_WIDTH = 64  # columns that are rounded between two matrix products
_TOGETHER = 2**21  # numbers of runs that are rounded side by side: each step is one call for all of them
Ends = tuple[NDArray[np.float32], NDArray[np.float32]]  # smallest and largest steps from zero, of each output or of all


def compensated_integers(weight: NDArray[np.float32], encoding: Encoding, grams: Sequence[Tensor]) -> NDArray[np.integer]:
    """Integers `(out, in, *kernel)` of a weight, in the encoding's own type.

    Args:
        weight: `(out, in, *kernel)`.
        encoding: one scale and zero point for each output channel, or one for all.
        grams: sums of `x x^T` over inputs, one for each run of columns in their order; runs do not make up for each other.
    """
    flat, scale = weight.reshape(len(weight), -1), np.asarray(encoding.scale, np.float32).reshape(-1, 1)
    zero = np.asarray(encoding.zero_point, np.float32)
    integers, first = np.empty(flat.shape, encoding.dtype), 0
    together = max(1, _TOGETHER // max(1, len(weight) * max(map(len, grams), default=1)))
    for some in (grams[start : start + together] for start in range(0, len(grams), together)):
        columns = [flat[:, end - len(gram) : end] for gram, end in zip(some, first + np.cumsum([len(gram) for gram in some]), strict=True)]
        rounded = _rounded([(part / scale).T for part in columns], some, (encoding.qmin - zero, encoding.qmax - zero))
        for run in rounded:
            integers[:, first : first + len(run)] = (run + zero if zero.any() else run).T
            first += len(run)
    return integers.reshape(weight.shape)


def _rounded(columns: Sequence[NDArray[np.float32]], grams: Sequence[Tensor], ends: Ends) -> list[NDArray[np.float32]]:
    """Integers of some runs of columns `(k, out)`, given in steps, by the Gram matrices `(k, k)` of their inputs.

    Shorter runs are filled up in front, with columns of zeros that say nothing to the others and are rounded last.
    """
    longest = max(map(len, grams))
    factors = torch.zeros(len(grams), longest, longest)
    values = torch.zeros(len(grams), longest, columns[0].shape[1])
    orders = []
    for factor, value, part, gram in zip(factors, values, columns, grams, strict=True):
        gram, front = gram.cpu(), longest - len(gram)
        order = torch.argsort(gram.diagonal(), stable=True)
        factor[front:, front:] = _factor(gram.index_select(0, order).index_select(1, order).float())
        torch.index_select(torch.from_numpy(np.ascontiguousarray(part)), 0, order, out=value[front:])
        orders.append(order)
    integers, left = torch.empty_like(values), torch.zeros_like(values)
    for last in range(longest, 0, -_WIDTH):
        block = slice(max(last - _WIDTH, 0), last)
        targets = torch.stack([v[block] + f[last:, block].T @ rest[last:] for v, f, rest in zip(values, factors, left, strict=True)])
        _round_block(targets.numpy(), factors[:, block, block].numpy(), (values[:, block].numpy(), left[:, block].numpy()), ends)
        integers[:, block] = targets
    return [run[longest - len(order) :][torch.argsort(order)].numpy() for run, order in zip(integers, orders, strict=True)]


def _factor(gram: Tensor) -> Tensor:
    """Cholesky's factor, each column over its diagonal."""
    mean = float(gram.diagonal().double().mean())
    gram.diagonal().add_(DAMPING * mean if mean > 0.0 else 1.0)
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(gram)
    if failed:  # inputs that are all but one
        factor = torch.linalg.cholesky(gram.double()).float()
    factor /= factor.diagonal().clone()
    return factor


def _round_block(
    wanted: NDArray[np.float32], factor: NDArray[np.float32], values: tuple[NDArray[np.float32], NDArray[np.float32]], ends: Ends
) -> None:
    """Round the columns `(runs, k, out)` of one block where they lie, the last one first.

    NumPy on the same memory: it takes a third of torch's time for so small steps.

    Args:
        factor: of the block's columns, `(runs, k, k)`.
        values: the columns before, in steps, and the memory for what is left of each.
    """
    (before, rest), coupling = values, np.ascontiguousarray(factor.swapaxes(1, 2))
    for j in range(wanted.shape[1] - 1, -1, -1):
        column = wanted[:, j]
        column += (coupling[:, j, None, j + 1 :] @ rest[:, j + 1 :])[:, 0]
        np.rint(column, out=column)
        np.maximum(column, ends[0], out=column)
        np.minimum(column, ends[1], out=column)
        np.subtract(before[:, j], column, out=rest[:, j])
