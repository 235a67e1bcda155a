"""Several adapters at once, with weights: the sum at every slot, and what is to be said of it.

Where the ranks together fit the slot's, and with weights of 1, nothing is rounded. Rows of A that several adapters share take one place
where places are short, which is exact too; what is still too much becomes the nearest product of the slot's rank, and a note says what
that keeps. Base plus nothing is the base, bit for bit.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from quad.core.errors import CompatibilityError
from quad.core.slots import SlotTable
from quad.runtime.adapters.block_weights import BlockWeights, Weight, weight_at
from quad.runtime.adapters.buffers import Buffers
from quad.runtime.adapters.slot_sum import Part, add, largest_integer

Notes = tuple[str, ...]

MIN_ENERGY = 0.9  # a sum that keeps less of the parts' energy than this share, at any slot, is refused


def headroom(tensors: Mapping[str, NDArray[Any]], slots: SlotTable) -> float:
    """The largest weight, of either sign, with which no entry of an adapter's weighted B leaves the lattice; infinite for floats.

    Args:
        tensors: graph input name -> array of any rank; slots that are not there are zero.
    """
    room = math.inf
    for slot in slots.slots:
        if slot.b_name in tensors:
            b = tensors[slot.b_name]
            largest = max(float(b.max(initial=0)), -float(b.min(initial=0)))
            room = min(room, largest_integer(slot) / largest if largest else math.inf)
    return room


def show_headroom(room: float) -> str:
    """Two digits, never more than what it is."""
    return f"{math.floor(room * 100) / 100:.2f}"


def mix_adapters(parts: Mapping[str, Buffers], weights: Mapping[str, Weight], slots: SlotTable, zeros: Buffers) -> tuple[Buffers, Notes]:
    """Buffers of the weighted sum of adapters.

    Args:
        parts: adapter name -> its buffers, at the slots' ranks.
        weights: adapter name -> any finite number, or one for each block.
        zeros: `zero_buffers`; slots to which nothing is added share them.

    Returns:
        Graph input name -> array, and notes on ranks that did not fit and on values that were clipped.

    Raises:
        CompatibilityError: at some slot the ranks together exceed the slot's, and the nearest sum that fits keeps too little.
    """
    mixed = Buffers()
    clipped: Counter[str] = Counter()
    cut: dict[str, float] = {}
    for slot in slots.slots:
        candidates = [Part.of(name, weight_at(weights[name], slot.path), buffers, slot) for name, buffers in parts.items()]
        used = [part for part in candidates if len(part.rows)]
        if not used:
            mixed |= {name: zeros[name] for name in (slot.a_name, slot.b_name)}
            continue
        total = add(used, slot)
        mixed |= {slot.a_name: total.a, slot.b_name: total.b}
        clipped.update(total.clipped)
        if total.energy is not None:
            cut[slot.path] = total.energy
    if cut and min(cut.values()) < MIN_ENERGY:
        raise _refusal(cut, parts, weights, slots)
    return mixed, (*_block_notes(weights, slots), *_cut_notes(cut, parts), *_clip_notes(clipped, parts, weights, slots))


def _refusal(cut: Mapping[str, float], parts: Mapping[str, Buffers], weights: Mapping[str, Weight], slots: SlotTable) -> CompatibilityError:
    """Names the slot that keeps least, and the rank with which every slot would keep all."""
    used = {
        slot.path: {name: len(Part.of(name, weight_at(weights[name], slot.path), buffers, slot).rows) for name, buffers in parts.items()}
        for slot in slots.slots
    }
    worst = slots.by_path()[min(cut, key=lambda path: cut[path])]
    ranks = " + ".join(f"{name!r} (rank {rank})" for name, rank in used[worst.path].items() if rank)
    count = max(sum(rank > 0 for rank in ranks_at_slot.values()) for ranks_at_slot in used.values())
    needed, most = sum(used[worst.path].values()), max(sum(ranks_at_slot.values()) for ranks_at_slot in used.values())
    return CompatibilityError(
        f"adapters {ranks} need rank {needed} at slot {worst.path}, the bundle has {worst.rank}, and the nearest sum of that rank keeps "
        f"{cut[worst.path]:.2f} of theirs, under {MIN_ENERGY}: use fewer at once or build with --room {count} or --max-rank {most}"
    )


def _block_notes(weights: Mapping[str, Weight], slots: SlotTable) -> Notes:
    """A line for each adapter with a weight for blocks that no slot lies in."""
    notes = []
    for name, weight in weights.items():
        if isinstance(weight, BlockWeights) and (odd := weight.unmatched(slot.path for slot in slots.slots)):
            places = ", ".join(block.rstrip(".") for block in odd)
            notes.append(f"adapters: {name!r} has a weight for {places}, where this bundle takes no adapter: it changes nothing")
    return tuple(notes)


def _cut_notes(cut: Mapping[str, float], names: Mapping[str, Buffers]) -> Notes:
    if not cut:
        return ()
    worst = min(cut, key=lambda path: cut[path])
    together = " + ".join(map(repr, names))
    return (f"adapters: {together} exceed the rank of {len(cut)} slots; the nearest sum keeps {cut[worst]:.3f} at {worst}, the worst",)


def _clip_notes(clipped: Mapping[str, int], parts: Mapping[str, Buffers], weights: Mapping[str, Weight], slots: SlotTable) -> Notes:
    notes = []
    for name, count in clipped.items():
        if count and name:
            room = show_headroom(headroom(parts[name], slots))
            notes.append(f"adapters: {name!r} at weight {weights[name]:g}: up to {room} fits the profile; {count} weights were clipped")
        elif count:
            notes.append(f"adapters: {count} weights of the sum left the profile's range and were clipped; use smaller weights")
    return tuple(notes)
