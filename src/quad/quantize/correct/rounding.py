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
    for gram in grams:
        run = slice(first, first + len(gram))
        columns = torch.from_numpy(np.ascontiguousarray((flat[:, run] / scale).T))
        integers[:, run] = _rounded(columns, gram, (encoding.qmin - zero, encoding.qmax - zero)).numpy().T + zero[:, None]
        first = run.stop
    return integers.reshape(weight.shape)


def _rounded(columns: Tensor, gram: Tensor, ends: Ends) -> Tensor:
    """Integers of some columns `(k, out)`, given in steps, by the Gram matrix `(k, k)` of their inputs."""
    gram = gram.cpu()
    order = torch.argsort(gram.diagonal(), stable=True)
    damped = gram[order[:, None], order].float()
    mean = float(damped.diagonal().double().mean())
    damped.diagonal().add_(DAMPING * mean if mean > 0.0 else 1.0)
    factor, failed = torch.linalg.cholesky_ex(damped)
    if failed:  # inputs that are all but one
        factor = torch.linalg.cholesky(damped.double()).float()
    factor /= factor.diagonal().clone()
    ordered = columns[order]
    integers, left = torch.zeros_like(ordered), torch.zeros_like(ordered)
    for last in range(len(ordered), 0, -_WIDTH):
        first = max(last - _WIDTH, 0)
        targets = ordered[first:last] + factor[last:, first:last].T @ left[last:]
        block = slice(first, last)
        integers[block] = _round_block(targets, factor[block, block], ordered[block], left[block], ends)
    return integers[torch.argsort(order)]


def _round_block(targets: Tensor, factor: Tensor, ordered: Tensor, left: Tensor, ends: Ends) -> Tensor:
    """Integers of the columns of one block, the last one first; what is left of each goes into `left`.

    NumPy on the same memory: it takes a third of torch's time for so small steps.
    """
    wanted, coupling, values, rest = targets.numpy(), factor.numpy(), ordered.numpy(), left.numpy()
    integers = np.empty_like(wanted)
    for j in range(len(wanted) - 1, -1, -1):
        np.rint(wanted[j] + coupling[j + 1 :, j] @ rest[j + 1 :], out=integers[j])
        np.clip(integers[j], *ends, out=integers[j])
        np.subtract(values[j], integers[j], out=rest[j])
    return torch.from_numpy(integers)
