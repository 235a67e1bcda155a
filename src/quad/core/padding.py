"""An adapter's own ranks on disk; `quad.runtime.adapters.buffers.pad` puts back what `trim` cuts.

A graph's slots have rank for the largest adapters, two at once. A file holds each adapter at its own: what padding added is cut off when
it is written and put back when it is read. What is cut is the tail of rank channels where A and B both are zero, so that the padded
tensors come back bit for bit. Zero channels in the middle stay: moving the others up would change the order in which a graph adds them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quad.core.slots import Slot, SlotTable


def scale_vectors(tensors: Mapping[str, NDArray[Any]], slots: SlotTable) -> dict[str, NDArray[np.float32]]:
    """The vectors that the graphs' inputs of scales read: of all slots one after the other, zero where an adapter has none.

    Args:
        tensors: `<path>.lora_scale` -> `(r,)` float32, of any rank up to the slot's; other tensors are passed over.

    Returns:
        Graph input name -> `(sum of the slots' ranks,)`; empty where slots are not normalised.
    """
    vectors: dict[str, NDArray[np.float32]] = {}
    for name, members in slots.scale_inputs().items():
        vector, start = np.zeros(sum(slot.rank for slot in members), np.float32), 0
        for slot in members:
            if slot.scale_name in tensors:
                scales = tensors[slot.scale_name]
                vector[start : start + len(scales)] = scales
            start += slot.rank
        vectors[name] = vector
    return vectors


def slot_scales(vectors: Mapping[str, NDArray[Any]], slots: SlotTable) -> dict[str, NDArray[Any]]:
    """Slot path -> its part of the vector of scales that its graph reads, `(rank,)`; a view, empty where slots are not normalised.

    Args:
        vectors: graph input name -> `(sum of the slots' ranks,)`; other tensors are passed over.
    """
    parts: dict[str, NDArray[Any]] = {}
    for name, members in slots.scale_inputs().items():
        if name in vectors:
            ends = np.cumsum([slot.rank for slot in members])[:-1]
            parts |= {slot.path: part for slot, part in zip(members, np.split(vectors[name], ends), strict=True)}
    return parts


def trim(tensors: Mapping[str, NDArray[Any]], slots: SlotTable) -> dict[str, NDArray[Any]]:
    """The part of an adapter that a file holds: A `(r, in, ...)` and B `(out, r, ...)` of every slot where it is not zero, in slot order.

    Of normalised slots its scales `(r,)` too, from the vectors that the graphs read. Channels of the base's correction are no adapter's.

    Args:
        tensors: graph input name -> array of any rank up to the slot's; a slot that is not there is zero.
    """
    trimmed: dict[str, NDArray[Any]] = {}
    scales = slot_scales(tensors, slots)
    for slot in slots.slots:
        if slot.a_name in tensors:
            a, b = tensors[slot.a_name], tensors[slot.b_name]
            used = _used(a, b)
            used = used[used < slot.adapter_rank]
            if used.size:
                rank = int(used[-1]) + 1
                trimmed |= {slot.a_name: np.ascontiguousarray(a[:rank]), slot.b_name: np.ascontiguousarray(b[:, :rank])}
                if slots.normalised:
                    trimmed[slot.scale_name] = np.ascontiguousarray(scales[slot.path][:rank])
    return trimmed


def at_own_ranks(tensors: Mapping[str, NDArray[Any]], slots: SlotTable) -> dict[str, NDArray[Any]]:
    """The slots' inputs, of each slot without the tail of rank channels that are zero, down to rank 0: `B A` stays what it is.

    Args:
        tensors: graph input name -> array of any rank; others are passed over, and where one is missing all stay as they are.
    """
    if not tensors.keys() >= slots.input_shapes().keys():
        return dict(tensors)
    own: dict[str, NDArray[Any]] = {}
    for slot in slots.slots:
        a, b = tensors[slot.a_name], tensors[slot.b_name]
        rank = int(_used(a, b).max(initial=-1)) + 1
        own |= {slot.a_name: a[:rank], slot.b_name: b[:, :rank]}
    for name, members in slots.scale_inputs().items():
        ends = np.cumsum([len(tensors[slot.a_name]) for slot in members])[:-1]
        parts = np.split(tensors[name], ends)
        own[name] = np.concatenate([part[: len(own[slot.a_name])] for slot, part in zip(members, parts, strict=True)])
    return own


def _used(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.intp]:
    """Numbers of the rank channels where one of the two is not zero."""
    return np.flatnonzero(a.any(axis=tuple(range(1, a.ndim))) | b.any(axis=(0, *range(2, b.ndim))))


def own_shapes(slot: Slot, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of A and B of an adapter that has this rank at the slot."""
    a, b = slot.a_shape, slot.b_shape
    return (rank, *a[1:]), (b[0], rank, *b[2:])
