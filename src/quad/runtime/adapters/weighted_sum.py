"""Several adapters at once, with weights: the sum at every slot, and what is to be said of it.

Where the ranks together fit the slot's, and with weights of 1, nothing is rounded; at normalised slots with any weights. Rows of A that
several adapters share take one place where places are short, which is exact too; what is still too much becomes the nearest product of the
slot's rank, and a note says what that keeps. Base plus nothing is the base, bit for bit.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from quad.core.encoding import Encoding
from quad.core.errors import CompatibilityError, UsageError, mismatch
from quad.core.padding import scale_vectors, slot_scales
from quad.core.slots import Slot, SlotTable
from quad.runtime.adapters.block_weights import BlockWeights, Weight, largest_weight, weight_at
from quad.runtime.adapters.buffers import Buffers, Vectors, ZeroBuffers, beside_correction
from quad.runtime.adapters.normalised_sum import ScaledPart, add_scaled
from quad.runtime.adapters.slot_sum import Part, add, largest_integer

Notes = tuple[str, ...]
Encodings = Mapping[str, Encoding]

MIN_ENERGY = 0.9  # a sum that keeps less of the parts' energy than this share, at any slot, is refused


def headroom(tensors: Mapping[str, NDArray[Any]], slots: SlotTable, encodings: Encodings = MappingProxyType({})) -> float:
    """The largest weight, of either sign, with which nothing of an adapter that is multiplied by it leaves its range.

    That is an entry of B, infinite for floats; of normalised slots a scale, infinite where graphs read scales as floats.

    Args:
        tensors: name in an adapter's file -> array of any rank; slots that are not there are zero.
        encodings: graph input of scales -> its encoding, of those that the graphs read as integers.
    """
    if slots.normalised:
        return _scale_room(scale_vectors(tensors, slots), encodings)
    room = math.inf
    for slot in slots.slots:
        if slot.b_name in tensors:
            b = tensors[slot.b_name]
            largest = max(float(b.max(initial=0)), -float(b.min(initial=0)))
            room = min(room, largest_integer(slot) / largest if largest else math.inf)
    return room


def _scale_room(scales: Vectors, encodings: Encodings) -> float:
    largest = {name: float(np.abs(scales[name]).max(initial=0.0)) for name in encodings}
    return min((encodings[name].qmax * encodings[name].scale[0] / peak for name, peak in largest.items() if peak), default=math.inf)


def show_headroom(room: float) -> str:
    """Two digits, never more than what it is."""
    return f"{math.floor(room * 100) / 100:.2f}"


def strength_notes(weights: Mapping[str, Weight], rooms: Mapping[str, float | msgspec.UnsetType], slots: SlotTable) -> Notes:
    """A line for each adapter of normalised slots whose weight is over those that its admission tried.

    Args:
        rooms: adapter name -> `headroom` of its manifest.
    """
    notes = []
    for name, weight in weights.items() if slots.normalised else ():
        room = rooms[name]
        if room is not msgspec.UNSET and largest_weight(weight, slots) > room:
            tried = f"it was tried up to {show_headroom(room)}, beyond it activations of the network may be cut off"
            notes.append(f"adapters: {name!r} at weight {weight:g}: {tried}")
    return tuple(notes)


def mix_adapters(
    parts: Mapping[str, Buffers], weights: Mapping[str, Weight], slots: SlotTable, zeros: ZeroBuffers
) -> tuple[Buffers, Notes]:
    """Buffers of the weighted sum of adapters.

    Args:
        parts: adapter name -> its buffers, at the slots' ranks.
        weights: adapter name -> any finite number, or one for each block.
        zeros: `zero_buffers`; slots to which nothing is added share them.

    Returns:
        Graph input name -> array, and notes on ranks that did not fit and on values that were clipped.

    Raises:
        CompatibilityError: at some slot the ranks together exceed the slot's, and the nearest sum that fits keeps too little.
        UsageError: scales times a weight are beyond all numbers.
    """
    mixed, notes = (_mix_scaled if slots.normalised else _mix_searched)(parts, weights, slots, zeros)
    return mixed, (*_block_notes(weights, slots), *notes)


def _mix_searched(parts: Mapping[str, Buffers], weights: Mapping[str, Weight], slots: SlotTable, zeros: Buffers) -> tuple[Buffers, Notes]:
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
    _require_energy(cut, parts, weights, slots)
    return mixed, (*_cut_notes(cut, parts), *_clip_notes(clipped, parts, weights, slots))


def _mix_scaled(parts: Mapping[str, Buffers], weights: Mapping[str, Weight], slots: SlotTable, zeros: ZeroBuffers) -> tuple[Buffers, Notes]:
    """At normalised slots; of one adapter alone A and B stay the same arrays. A weight is an adapter's, the base's correction has none."""
    weighted = {name: _times(name, weights[name], zeros.uncorrected(buffers.scales), slots) for name, buffers in parts.items()}
    vectors: Vectors
    if len(parts) == 1:
        ((name, source),) = parts.items()
        vectors = zeros.corrected({graph_input: vector.astype(np.float32) for graph_input, vector in weighted[name].items()})
        mixed = Buffers({**source, **zeros.encoded(vectors)}, scales=vectors, source=source)
        return mixed, _scale_notes(mixed, parts, weights, zeros)
    scaled = {name: slot_scales(vectors, slots) for name, vectors in weighted.items()}
    arrays: dict[str, NDArray[Any]] = {**zeros}
    totals: dict[str, NDArray[np.float32]] = {}
    cut: dict[str, float] = {}
    for slot in slots.slots:
        candidates = [
            ScaledPart(part=Part.of(name, 1.0, buffers, slot).without(scaled[name][slot.path] == 0.0), scales=scaled[name][slot.path])
            for name, buffers in parts.items()
        ]
        if used := [each for each in candidates if len(each.part.rows)]:
            total, totals[slot.scale_name] = add_scaled(used, slot)
            arrays |= beside_correction({slot.a_name: total.a, slot.b_name: total.b}, zeros, slot)
            if total.energy is not None:
                cut[slot.path] = total.energy
    _require_energy(cut, parts, weights, slots)
    vectors = zeros.corrected(scale_vectors(totals, slots))
    mixed = Buffers(arrays | zeros.encoded(vectors), scales=vectors)
    return mixed, (*_cut_notes(cut, parts), *_scale_notes(mixed, parts, weights, zeros))


def _times(adapter: str, weight: Weight, scales: Vectors, slots: SlotTable) -> dict[str, NDArray[np.float64]]:
    """An adapter's scales times its weight at their slots, by graph input.

    Raises:
        UsageError: they are beyond all numbers.
    """
    weighted = {name: scales[name].astype(np.float64) * _factor(weight, members) for name, members in slots.scale_inputs().items()}
    if any(np.abs(vector).max(initial=0.0) > np.finfo(np.float32).max for vector in weighted.values()):
        raise UsageError(
            mismatch(f"adapter {adapter!r}", "a weight that its scales can be multiplied by", f"{weight:g}", "use a smaller one")
        )
    return weighted


def _factor(weight: Weight, slots: Sequence[Slot]) -> NDArray[np.float64]:
    """The weight of each rank channel of these slots, or the one of all of them."""
    if not isinstance(weight, BlockWeights):
        return np.array(weight, np.float64)
    return np.repeat([weight.at(slot.path) for slot in slots], [slot.rank for slot in slots])


def _require_energy(cut: Mapping[str, float], parts: Mapping[str, Buffers], weights: Mapping[str, Weight], slots: SlotTable) -> None:
    if cut and min(cut.values()) < MIN_ENERGY:
        raise _refusal(cut, parts, weights, slots)


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
        f"adapters {ranks} need rank {needed} at slot {worst.path}, the bundle has {worst.adapter_rank}, and the nearest sum of that rank "
        f"keeps {cut[worst.path]:.2f} of theirs, under {MIN_ENERGY}: use fewer at once or build with --room {count} or --max-rank {most}"
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


def _scale_notes(mixed: Buffers, parts: Mapping[str, Buffers], weights: Mapping[str, Weight], zeros: ZeroBuffers) -> Notes:
    """A line about scales that lie beyond the end of the graphs' integers."""
    ends = {name: encoding.scale[0] * (encoding.qmax + 0.5) for name, encoding in zeros.encodings.items()}
    count = sum(int((np.abs(mixed.scales[name]) > end).sum()) for name, end in ends.items())
    if not count:
        return ()
    if len(parts) > 1:
        return (f"adapters: {count} scales of the sum left the profile's range and were clipped; use smaller weights",)
    ((name, source),) = parts.items()
    room = show_headroom(_scale_room(source.scales, zeros.encodings))
    return (f"adapters: {name!r} at weight {weights[name]:g}: up to {room} fits the profile; {count} scales were clipped",)
