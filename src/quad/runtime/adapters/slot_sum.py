"""The weighted sum of several adapters at one slot, in the integers of the slot's lattice.

`sum_i w_i B_i A_i x = [w_1 B_1 | w_2 B_2 | ...] [A_1; A_2; ...] x`: rank channels are laid side by side. Slot encodings are symmetric, with
one step per tensor for all adapters: integers are the real numbers in units of it, and the profile is not asked. A weight scales B, which
is rounded again; A stays as it is, so that `A x` stays in the range that it was encoded for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from quad.core.padding import own_shapes
from quad.core.slots import Slot
from quad.runtime.adapters.buffers import Buffers
from quad.runtime.adapters.low_rank import nearest

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Part:
    """One adapter at one slot.

    Args:
        a, b: its buffers, at the slot's rank.
        rows: rank channels where neither is zero; the others add nothing and take no place.
    """

    name: str
    weight: float
    a: Array
    b: Array
    rows: NDArray[np.intp]

    @staticmethod
    def of(name: str, weight: float, buffers: Buffers, slot: Slot) -> Part:
        a, b = buffers[slot.a_name], buffers[slot.b_name]
        alive = a.reshape(slot.rank, -1).any(axis=1) & b.reshape(slot.out_features, slot.rank).any(axis=0)
        rows = np.flatnonzero(np.asarray(alive)[: slot.adapter_rank]) if weight else np.zeros(0, np.intp)
        return Part(name=name, weight=weight, a=a, b=b, rows=rows)

    def without(self, silent: NDArray[np.bool_]) -> Part:
        """Without the rank channels that count nothing, `(slot.rank,)`."""
        return replace(self, rows=self.rows[~silent[self.rows]])


@dataclass(frozen=True, kw_only=True)
class Sum:
    """Both buffers of a slot.

    Args:
        clipped: how many entries left the lattice, of each part; where the parts were merged, of all under one name, the empty one.
        energy: which share of the exact sum's energy is kept; None where all of it is, but for rounding.
    """

    a: Array
    b: Array
    clipped: dict[str, int]
    energy: float | None = None


def largest_integer(slot: Slot) -> float:
    """Magnitude that entries of a slot's tensors may have on their symmetric lattice; infinite for floats."""
    if slot.dtype == "float32":
        return math.inf
    return float(np.iinfo(slot.dtype).max if slot.largest is msgspec.UNSET else slot.largest)


def add(parts: Sequence[Part], slot: Slot) -> Sum:
    """The sum of parts, one at least, none without a channel: exact but for rounding where the ranks fit the slot, else the nearest."""
    if len(parts) == 1:
        return _alone(parts[0], slot)
    if sum(len(part.rows) for part in parts) <= slot.rank:
        return _side_by_side(parts, slot)
    a = np.concatenate([part.a[part.rows].reshape(len(part.rows), -1) for part in parts])
    b = np.concatenate([part.weight * part.b[:, part.rows].reshape(slot.out_features, -1).astype(np.float64) for part in parts], axis=1)
    if (first := row_places(a)).max() < slot.rank:
        return _written(*gathered(a, b, first), slot)
    product = nearest(a.astype(np.float64), b, slot.rank, largest_integer(slot))
    return _written(product.a, product.b, slot, product.energy)


def _alone(part: Part, slot: Slot) -> Sum:
    """A is the adapter's own array, and its channels stay where they are."""
    if part.weight == 1.0:
        return Sum(a=part.a, b=part.b, clipped={})
    b, clipped = _rounded(part.weight * part.b.astype(np.float64), slot)
    return Sum(a=part.a, b=b, clipped={part.name: clipped})


def _side_by_side(parts: Sequence[Part], slot: Slot) -> Sum:
    a, b = np.zeros(slot.a_shape, slot.dtype), np.zeros(slot.b_shape, slot.dtype)
    clipped, start = {}, 0
    for part in parts:
        stop = start + len(part.rows)
        a[start:stop] = part.a[part.rows]
        b[:, start:stop], clipped[part.name] = _rounded(part.weight * part.b[:, part.rows].astype(np.float64), slot)
        start = stop
    return Sum(a=a, b=b, clipped=clipped)


def row_places(a: Array) -> NDArray[np.intp]:
    """The number of every row among the different rows, `(n,)`."""
    places: dict[bytes, int] = {}
    return np.array([places.setdefault(row.tobytes(), len(places)) for row in a])


def gathered(a: Array, b: NDArray[np.float64], places: NDArray[np.intp]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """`B A = (sum of the columns of B that stand at one row of A) (the different rows of A)`, exactly."""
    rows, columns = np.zeros((places.max() + 1, a.shape[1])), np.zeros((places.max() + 1, len(b)))
    rows[places] = a
    np.add.at(columns, places, b.T)
    return rows, columns.T


def _written(a: NDArray[np.float64], b: NDArray[np.float64], slot: Slot, energy: float | None = None) -> Sum:
    """Factors `(r, in)` and `(out, r)` as buffers of the slot."""
    a_shape, b_shape = own_shapes(slot, len(a))
    padded_a, padded_b = np.zeros(slot.a_shape, slot.dtype), np.zeros(slot.b_shape, slot.dtype)
    padded_a[: len(a)], lost_a = _rounded(a.reshape(a_shape), slot)
    padded_b[:, : len(a)], lost_b = _rounded(b.reshape(b_shape), slot)
    return Sum(a=padded_a, b=padded_b, clipped={"": lost_a + lost_b}, energy=energy)


def _rounded(values: NDArray[np.float64], slot: Slot) -> tuple[Array, int]:
    """Entries on the slot's lattice, and how many of them lay beyond its end."""
    limit = largest_integer(slot)
    if math.isinf(limit):
        return values.astype(np.float32), 0
    steps = np.rint(values)
    return np.clip(steps, -limit, limit).astype(slot.dtype), int((np.abs(steps) > limit).sum())
