"""The base's correction: what rounding to 4 bits took from each layer, as a product of small rank behind every adapter's channels.

    y = W4 x + [B | Bc] diag(s, sc) [A; Ac] x        Bc diag(sc) Ac ~ W - W4

A file holds it in bytes, once for a bundle. Slots of 16 bits read a byte as 256 steps, so that both have one lattice. It is bound beside
whatever adapter there is, and for the base alone; an adapter's weight does not count for it. Source: docs/method.md section 9.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from quad.core.padding import own_shapes, scale_vectors
from quad.core.slots import Slot, SlotTable

Tensors = Mapping[str, NDArray[Any]]
BYTE_END = 127  # of the correction's integers, of either sign
_STEPS = {"int8": 1, "int16": 256}


def steps_of_byte(slot: Slot) -> int:
    """How many steps of a slot's lattice one of the correction's integers is."""
    return _STEPS[slot.dtype]


def correction_shapes(slots: SlotTable) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Tensors of a correction's file -> element type and shape."""
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {}
    for slot in slots.slots:
        if slot.correction is not msgspec.UNSET:
            a, b = own_shapes(slot, slot.correction)
            shapes |= {slot.a_name: ("int8", a), slot.b_name: ("int8", b), slot.scale_name: ("float32", (slot.correction,))}
    return shapes


def place_correction(tensors: Tensors, slots: SlotTable) -> dict[str, NDArray[Any]]:
    """Graph inputs with the correction in their last rank channels and zeros before it; the vectors of scales among them.

    Args:
        tensors: of a correction's file; slots that are not there have none.
    """
    placed: dict[str, NDArray[Any]] = {}
    scales: dict[str, NDArray[np.float32]] = {}
    for slot in slots.slots:
        if slot.a_name in tensors:
            first, steps = slot.adapter_rank, steps_of_byte(slot)
            a, b, s = np.zeros(slot.a_shape, slot.dtype), np.zeros(slot.b_shape, slot.dtype), np.zeros(slot.rank, np.float32)
            a[first:] = tensors[slot.a_name].astype(slot.dtype) * steps
            b[:, first:] = tensors[slot.b_name].astype(slot.dtype) * steps
            s[first:] = tensors[slot.scale_name]
            placed |= {slot.a_name: a, slot.b_name: b}
            scales[slot.scale_name] = s
    return placed | scale_vectors(scales, slots) if placed else placed
