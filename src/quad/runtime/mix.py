"""Several adapters at once, on the integer lattice of the one profile.

`sum_i w_i B_i A_i x = [w_1 B_1 | w_2 B_2 | ...] [A_1; A_2; ...] x`: ranks are laid side by side inside the slot.
All adapters share their encodings, so that with weights of 1 the integers are moved and nothing is rounded; a weight
scales B, which is then rounded onto the lattice again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quad.core.encoding import Encoding
from quad.core.errors import CompatibilityError, UsageError, mismatch
from quad.core.profile import Profile
from quad.core.slots import Slot, SlotTable

Buffers = dict[str, NDArray[Any]]
Notes = tuple[str, ...]


def weights_of(names: Sequence[str], weights: float | Sequence[float] | None) -> dict[str, float]:
    """Adapter name -> weight; 1 where none is given, one number for all.

    Raises:
        UsageError: a name twice, another number of weights, or a weight that is not finite.
    """
    given = [1.0 if weights is None else weights] * len(names) if weights is None or isinstance(weights, int | float) else list(weights)
    if len(given) != len(names) or len(set(names)) != len(names) or not all(map(math.isfinite, given)):
        expected = "each name once, with one finite weight each"
        raise UsageError(mismatch("set_adapters", expected, f"{list(names)}, {given}", "mend the call"))
    return dict(zip(names, map(float, given), strict=True))


def mix_adapters(parts: Mapping[str, Buffers], weights: Sequence[float], slots: SlotTable, profile: Profile) -> tuple[Buffers, Notes]:
    """Buffers of the weighted sum of adapters.

    Args:
        parts: adapter name -> its buffers.
        weights: one per adapter, any finite number.

    Returns:
        Graph input name -> array, and notes on clipped values.

    Raises:
        CompatibilityError: at some slot the ranks together exceed the slot's.
    """
    mixed: Buffers = {}
    clipped = 0
    for slot in slots.slots:
        encodings = profile.component(slot.component)
        rows = _place(slot, parts)
        a, b = (np.zeros(shape, np.float32) for shape in (slot.a_shape, slot.b_shape))
        for (buffers, (chosen, start)), weight in zip(zip(parts.values(), rows, strict=True), weights, strict=True):
            stop = start + len(chosen)
            a[start:stop] = _real(buffers[slot.a_name], slot, encodings.get(slot.a_name))[chosen]
            b[:, start:stop] = np.float32(weight) * _real(buffers[slot.b_name], slot, encodings.get(slot.b_name))[:, chosen]
        mixed[slot.a_name], lost_a = _lattice(a, slot, encodings.get(slot.a_name))
        mixed[slot.b_name], lost_b = _lattice(b, slot, encodings.get(slot.b_name))
        clipped += lost_a + lost_b
    notes = (f"adapters: {clipped} weights left the profile's range and were clipped; use smaller weights",) if clipped else ()
    return mixed, notes


def _place(slot: Slot, parts: Mapping[str, Buffers]) -> list[tuple[NDArray[np.intp], int]]:
    """Per adapter: the rank rows it uses, and where they go."""
    places, start = [], 0
    used = {name: _used_rows(slot, buffers) for name, buffers in parts.items()}
    for rows in used.values():
        places.append((rows, start))
        start += len(rows)
    if start > slot.rank:
        ranks = " + ".join(f"{name!r} (rank {len(rows)})" for name, rows in used.items())
        raise CompatibilityError(
            f"adapters {ranks} need rank {start} at slot {slot.path}, the bundle has {slot.rank}: "
            f"use fewer at once or build with --max-rank {start}"
        )
    return places


def _used_rows(slot: Slot, buffers: Buffers) -> NDArray[np.intp]:
    """Ranks where both A and B hold something; the others add nothing."""
    a, b = buffers[slot.a_name], buffers[slot.b_name]
    alive_a = a.reshape(slot.rank, -1).any(axis=1)
    alive_b = b.reshape(slot.out_features, slot.rank).any(axis=0)
    return np.flatnonzero(alive_a & alive_b)


def _real(array: NDArray[Any], slot: Slot, encoding: Encoding | None) -> NDArray[np.float32]:
    if slot.dtype == "float32":
        return np.asarray(array, np.float32)
    return _encoding(slot, encoding).dequantize(array)


def _lattice(array: NDArray[np.float32], slot: Slot, encoding: Encoding | None) -> tuple[NDArray[Any], int]:
    """The integers of a tensor, and how many of its entries were clipped by more than half a step."""
    if slot.dtype == "float32":
        return array, 0
    known = _encoding(slot, encoding)
    scale, zero = known.broadcast(array.ndim)
    steps = np.rint(array / scale) + zero
    return known.quantize(array), int(((steps > known.qmax) | (steps < known.qmin)).sum())


def _encoding(slot: Slot, encoding: Encoding | None) -> Encoding:
    if encoding is None:
        raise CompatibilityError(f"slot {slot.path}: expected an encoding in profile.json, found none; build the bundle again")
    return encoding
