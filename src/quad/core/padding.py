"""An adapter's own ranks on disk, the slots' ranks in memory.

A graph's slots have the largest rank of all adapters. A file holds each adapter at its own: what padding added is cut off when it is
written and put back when it is read. What is cut is the tail of rank channels where A and B both are zero, so that the padded tensors come
back bit for bit. Zero channels in the middle stay: moving the others up would change the order in which a graph adds them.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quad.core.slots import Slot, SlotTable

_ALIGNED_BYTES = 64  # where each copy begins: a line of the processor's cache


def trim(tensors: Mapping[str, NDArray[Any]], slots: SlotTable) -> dict[str, NDArray[Any]]:
    """What a file holds of an adapter: A `(r, in, ...)` and B `(out, r, ...)` of every slot where it is not zero, in slot order.

    Args:
        tensors: graph input name -> array of any rank up to the slot's; a slot that is not there is zero.
    """
    kept: dict[str, NDArray[Any]] = {}
    for slot in slots.slots:
        if slot.a_name in tensors:
            a, b = tensors[slot.a_name], tensors[slot.b_name]
            used = np.flatnonzero(a.any(axis=tuple(range(1, a.ndim))) | b.any(axis=(0, *range(2, b.ndim))))
            if used.size:
                rank = int(used[-1]) + 1
                kept |= {slot.a_name: np.ascontiguousarray(a[:rank]), slot.b_name: np.ascontiguousarray(b[:, :rank])}
    return kept


def pad(tensors: Mapping[str, NDArray[Any]], zeros: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Every graph input at the slot's rank.

    Where all tensors have it, they are taken as they are, not copied. Where one is smaller, or begins where no number of its type may, all
    of them are copied into one block of memory with zeros behind the smaller ones: what they were views of is then needed no more, and the
    block goes back to the system whole.

    Args:
        tensors: graph input name -> array in the slot's dtype, of any rank up to the slot's.
        zeros: every graph input, in slot order, at the slot's rank; they stand for slots that are not there, not copied.
    """
    shapes = {name: zero.shape for name, zero in zeros.items() if name in tensors}
    if any(tensors[name].shape != shape or not tensors[name].flags.aligned for name, shape in shapes.items()):
        tensors = _grown(tensors, shapes)
    return {name: tensors.get(name, zero) for name, zero in zeros.items()}


def own_shapes(slot: Slot, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of A and B of an adapter that has this rank at the slot."""
    a, b = slot.a_shape, slot.b_shape
    return (rank, *a[1:]), (b[0], rank, *b[2:])


def _grown(tensors: Mapping[str, NDArray[Any]], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, NDArray[Any]]:
    """Copies of these shapes, side by side in one block."""
    places: dict[str, int] = {}
    end = 0
    for name, shape in shapes.items():
        places[name] = end
        end += -(-math.prod(shape) * tensors[name].itemsize // _ALIGNED_BYTES) * _ALIGNED_BYTES
    block = _block(end)
    grown: dict[str, NDArray[Any]] = {}
    for name, shape in shapes.items():
        grown[name] = np.ndarray(shape, tensors[name].dtype, block, places[name])
        grown[name][tuple(slice(size) for size in tensors[name].shape)] = tensors[name]
    return grown


def _block(size: int) -> mmap.mmap:
    """Memory that goes back to the system whole, in large pages where there are such: three are had sooner than 1600."""
    if not hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(-1, size)
    block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            block.madvise(mmap.MADV_HUGEPAGE)
    return block
