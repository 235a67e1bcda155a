"""The weighted sum of several adapters at one normalised slot: a weight is a factor of the scales, and integers stay as they are.

    sum_i w_i B_i diag(s_i) (A_i x) = [B_1 | B_2 | ...] diag(w_1 s_1, w_2 s_2, ...) [A_1; A_2; ...] x

Where the ranks together fit the slot's, that is exact, whatever the weights. Otherwise a sum's factors are normalised anew, a rank channel
at a time: the largest entry of each row of A and of each column of B stands at the end of the lattice, and the scale takes the rest. So
nothing can be clipped; a row of A becomes no longer than the parts' were, since `A x` has a range that is frozen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quad.core.padding import own_shapes
from quad.core.slots import Slot
from quad.runtime.adapters.low_rank import MID_ROOM, nearest
from quad.runtime.adapters.slot_sum import Part, Sum, gathered, largest_integer, row_places

Matrix = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ScaledPart:
    """One adapter at one slot, and what its rank channels count: `(slot.rank,)`, the weight in it."""

    part: Part
    scales: Matrix


def add_scaled(parts: Sequence[ScaledPart], slot: Slot) -> tuple[Sum, NDArray[np.float32]]:
    """The sum of parts, one at least, none without a channel, and its scales `(slot.rank,)`."""
    if len(parts) == 1:
        return Sum(a=parts[0].part.a, b=parts[0].part.b, clipped={}), parts[0].scales.astype(np.float32)
    if sum(len(each.part.rows) for each in parts) <= slot.adapter_rank:
        return _side_by_side(parts, slot)
    a = np.concatenate([each.part.a[each.part.rows].reshape(len(each.part.rows), -1) for each in parts])
    b = np.concatenate([_columns(each, slot) for each in parts], axis=1)
    if (places := row_places(a)).max() < slot.adapter_rank:
        rows, columns = gathered(a, b, places)
        return _written(rows, *_normalised(columns.T, slot), slot)
    rows = a.astype(np.float64)
    product = nearest(rows, b, slot.adapter_rank, math.inf)
    longest = MID_ROOM * float(np.linalg.norm(rows, axis=1).max(initial=0.0))
    down, gains = _normalised(product.a, slot, longest)
    return _written(down, *_normalised(product.b.T * gains[:, None], slot), slot, product.energy)


def _columns(each: ScaledPart, slot: Slot) -> Matrix:
    """Columns of B `(out, n)` of the channels that add something, by their scales."""
    rows = each.part.rows
    columns: Matrix = each.part.b[:, rows].reshape(slot.out_features, -1) * each.scales[rows]
    return columns


def _side_by_side(parts: Sequence[ScaledPart], slot: Slot) -> tuple[Sum, NDArray[np.float32]]:
    a, b = np.zeros(slot.a_shape, slot.dtype), np.zeros(slot.b_shape, slot.dtype)
    scales, start = np.zeros(slot.rank, np.float32), 0
    for each in parts:
        rows = each.part.rows
        place = slice(start, start + len(rows))
        a[place], b[:, place], scales[place] = each.part.a[rows], each.part.b[:, rows], each.scales[rows]
        start = place.stop
    return Sum(a=a, b=b, clipped={}), scales


def _normalised(vectors: Matrix, slot: Slot, longest: float = math.inf) -> tuple[Matrix, Matrix]:
    """Each of `(n, size)` stretched to the lattice's end, or to a length where it would become longer, and the factors that undo it."""
    end = largest_integer(slot)
    peaks, lengths = np.abs(vectors).max(axis=1, initial=0.0), np.linalg.norm(vectors, axis=1)
    alive = peaks > 0.0
    gains = np.where(
        alive, np.minimum((1.0 if math.isinf(end) else end) / np.where(alive, peaks, 1.0), longest / np.where(alive, lengths, 1.0)), 1.0
    )
    return vectors * gains[:, None], np.where(alive, 1.0 / gains, 0.0)


def _written(a: Matrix, columns: Matrix, scales: Matrix, slot: Slot, energy: float | None = None) -> tuple[Sum, NDArray[np.float32]]:
    """Rows of A `(r, in)` and columns of B `(r, out)` as buffers of the slot."""
    a_shape, b_shape = own_shapes(slot, len(a))
    padded_a, padded_b, padded = np.zeros(slot.a_shape, slot.dtype), np.zeros(slot.b_shape, slot.dtype), np.zeros(slot.rank, np.float32)
    is_float = slot.dtype == "float32"
    padded_a[: len(a)] = (a if is_float else np.rint(a)).reshape(a_shape)
    padded_b[:, : len(a)] = (columns if is_float else np.rint(columns)).T.reshape(b_shape)
    padded[: len(a)] = scales
    return Sum(a=padded_a, b=padded_b, clipped={}, energy=energy), padded
