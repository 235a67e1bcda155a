"""The arrays that are bound to a graph's slot inputs, made of an adapter's tensors as its file holds them.

Of normalised slots a file holds the scales of each slot's rank channels, `<path>.lora_scale`, and a graph reads those of all its slots in
one input. So an adapter's weight is a factor of that one array, and A and B stay the same arrays, whatever the weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any
from weakref import WeakKeyDictionary

import msgspec
import numpy as np
from numpy.typing import NDArray

from quad.core.correction import place_correction
from quad.core.encoding import Encoding
from quad.core.errors import VerificationError, mismatch
from quad.core.memory import memory_block
from quad.core.padding import own_shapes, scale_vectors
from quad.core.profile import Profile
from quad.core.slots import Slot, SlotTable
from quad.runtime.adapters.block_weights import Weight

MakeRoom = Callable[[int], None]
Vectors = Mapping[str, NDArray[np.float32]]

# What an array, an engine's tensor over it and its place in a set of inputs take beside its numbers: 1.4 kB measured, and what an allocator
# loses.
BESIDE_BYTES = 1_600
_ALIGNED_BYTES = 64  # where each copy begins: a line of the processor's cache
_SCALE = np.dtype("float32")
_TABLES = 8  # of slots, whose names are remembered
_NO_VECTORS: Vectors = MappingProxyType({})


class Buffers(dict[str, NDArray[Any]]):
    """Graph input name -> array, not to be written to. Who uses the arrays holds the dict.

    Args:
        prepared: session -> these arrays as it has checked and wrapped them, so that they are bound again in a fraction of a
            millisecond; it goes with the buffers, and with the session.
        scales: of normalised slots, graph input of scales -> `(sum of the ranks,)` float32, as they are before a graph's encoding of them.
        source: the buffers that all of these arrays but the scales are those of; None where they are their own.
    """

    __slots__ = ("__weakref__", "prepared", "scales", "source")
    prepared: WeakKeyDictionary[Any, Any]
    scales: Vectors
    source: Buffers | None

    def __init__(self, *arrays: Any, scales: Vectors = _NO_VECTORS, source: Buffers | None = None) -> None:
        super().__init__(*arrays)
        self.prepared = WeakKeyDictionary()
        self.scales, self.source = scales, source


class ZeroBuffers(Buffers):
    """The zero adapter of a slot table, the base's correction behind its channels, and what the table's graphs take.

    Args:
        slots: the table.
        encodings: graph input of scales -> its encoding, of those that the graph reads as integers.
    """

    __slots__ = ("encodings", "slots")

    def __init__(self, slots: SlotTable, encodings: Mapping[str, Encoding], *arrays: Any, scales: Vectors = _NO_VECTORS) -> None:
        super().__init__(*arrays, scales=scales)
        self.slots, self.encodings = slots, encodings

    def corrected(self, scales: Vectors) -> Vectors:
        """Scales of an adapter, zero in the channels of the base's correction, with those of the correction."""
        return {name: vector + self.scales[name] for name, vector in scales.items()} if self.slots.corrected else scales

    def uncorrected(self, scales: Vectors) -> Vectors:
        """The scales of `corrected` without those of the correction."""
        return {name: vector - self.scales[name] for name, vector in scales.items()} if self.slots.corrected else scales

    def encoded(self, scales: Vectors) -> dict[str, NDArray[Any]]:
        """Scales as the graphs read them: floats, or integers of their encoding; those of no graph here are left out."""
        graphs = {name: vector for name, vector in scales.items() if name in self.scales}
        return {name: self.encodings[name].quantize(vector) if name in self.encodings else vector for name, vector in graphs.items()}


@dataclass(frozen=True, kw_only=True)
class AdapterMix:
    """The adapters of one picture, as they are bound to its graphs; one adapter alone and the base are mixes too.

    Args:
        weights: adapter name -> weight.
        notes: on what of a mix was lost.
        group: whose graph they run in, of the bundle's groups of adapters, counted from 0.
    """

    weights: Mapping[str, Weight]
    buffers: Buffers
    notes: tuple[str, ...] = ()
    group: int = 0


def scale_encodings(slots: SlotTable, profile: Profile) -> dict[str, Encoding]:
    """Graph input of scales -> its encoding, of those that graphs read as integers."""
    parts = {name: profile.component(members[0].component) for name, members in slots.scale_inputs().items()}
    return {name: encodings[name] for name, encodings in parts.items() if name in encodings}


def zero_buffers(
    slots: SlotTable, profile: Profile | None = None, correction: Mapping[str, NDArray[Any]] = MappingProxyType({})
) -> ZeroBuffers:
    """The zero adapter, the base bit for bit: all slot encodings are symmetric, so integer zero is zero.

    Inputs of one shape without a correction share one array; not to be written to.

    Args:
        profile: says which inputs of scales are integers; without it they are floats.
        correction: the tensors of its file, as `quad.core.correction.correction_shapes` lists them; none for no correction.
    """
    shared: dict[tuple[str, tuple[int, ...]], NDArray[Any]] = {}
    zeros: dict[str, NDArray[Any]] = {}
    for slot in slots.slots:
        for name, shape in ((slot.a_name, slot.a_shape), (slot.b_name, slot.b_shape)):
            key = (slot.dtype, shape)
            if key not in shared:
                shared[key] = np.zeros(shape, slot.dtype)
            zeros[name] = shared[key]
    placed = place_correction(correction, slots)
    zeros |= {name: array for name, array in placed.items() if name in zeros}
    encodings = {} if profile is None else scale_encodings(slots, profile)
    scales = {name: placed.get(name, vector) for name, vector in scale_vectors({}, slots).items()}
    buffers = ZeroBuffers(slots, encodings, zeros, scales=scales)
    buffers |= buffers.encoded(buffers.scales)
    return buffers


def padded_bytes(tensors: Iterable[str], zeros: ZeroBuffers) -> int:
    """Memory of an adapter with these tensors at the slots' ranks, and what it takes to hold them; names of no slot are passed over."""
    names = {*tensors}
    names |= {vector for vector, slots in zeros.slots.scale_inputs().items() if any(slot.scale_name in names for slot in slots)}
    return sum(zeros[name].nbytes + BESIDE_BYTES for name in names if name in zeros)


def largest_bytes(slots: SlotTable) -> int:
    """Memory of an adapter that has every slot: what is bound is as large as the slots, whatever the adapter's own rank."""
    sizes = (np.dtype(slot.dtype).itemsize * (math.prod(slot.a_shape) + math.prod(slot.b_shape)) for slot in slots.slots)
    return sum(sizes) + sum(vector.nbytes for vector in scale_vectors({}, slots).values())


def check_tensors(name: str, tensors: Mapping[str, NDArray[Any]], slots: SlotTable) -> None:
    """Refuse what is no adapter for these slots: A and B come in pairs, in the slot's type, of one rank from 1 to the slot's.

    Of normalised slots finite scales come with them.

    Args:
        name: the adapter's, for messages.
        tensors: as a file holds them; slots that are not among them are zero.

    Raises:
        VerificationError: the tensors are not what the slots digest promises.
    """
    where, expected = f"adapter {name!r}", _expected(slots)
    if odd := sorted(tensors.keys() - {part for _, names, _ in expected for part in names}):
        raise _odd(where, f"tensors of {len(slots.slots)} slots", f"{odd[0]}, which is none")
    for slot, names, dtype in expected:
        parts = [tensors[part] for part in names if part in tensors]
        if not parts:
            continue
        if len(parts) < len(names):
            pair = "A, B and scales, or none of them" if slots.normalised else "both A and B, or neither"
            raise _odd(f"{where}, slot {slot.path}", pair, f"{' and '.join(part for part in names if part in tensors)} alone")
        rank = len(parts[0]) if parts[0].ndim else 0
        if not 1 <= rank <= slot.adapter_rank:
            raise _odd(f"{where}, {names[0]}", f"a rank from 1 to {slot.adapter_rank}", f"shape {parts[0].shape}")
        for array, part, kind, shape in zip(parts, names, (dtype, dtype, _SCALE), (*own_shapes(slot, rank), (rank,)), strict=False):
            if array.shape != shape or array.dtype != kind:
                raise _odd(f"{where}, {part}", f"{kind} {shape}", f"{array.dtype} {array.shape}")
    _check_scales(where, tensors, slots)


@lru_cache(_TABLES)
def _expected(slots: SlotTable) -> tuple[tuple[Slot, tuple[str, ...], np.dtype[Any]], ...]:
    """The slots that an adapter may have something for, names of their tensors in a file, and the type of A and B."""
    of_adapters = [slot for slot in slots.slots if slot.adapter_rank]
    scales = {slot.path: (slot.scale_name,) if slots.normalised else () for slot in of_adapters}
    return tuple((slot, (slot.a_name, slot.b_name, *scales[slot.path]), np.dtype(slot.dtype)) for slot in of_adapters)


def _check_scales(where: str, tensors: Mapping[str, NDArray[Any]], slots: SlotTable) -> None:
    """All of them in one look: there is one small array a slot."""
    scales = {name: tensors[name] for slot in slots.slots if (name := slot.scale_name) in tensors} if slots.normalised else {}
    if scales and not np.isfinite(np.concatenate([*scales.values()])).all():
        odd = next(name for name, values in scales.items() if not np.isfinite(values).all())
        raise _odd(f"{where}, {odd}", "finite scales", "NaN or Inf")


def _odd(where: str, expected: str, actual: str) -> VerificationError:
    return VerificationError(mismatch(where, expected, actual, "pack it again with quad adapt"))


def pad(tensors: Mapping[str, NDArray[Any]], zeros: ZeroBuffers) -> Buffers:
    """Every graph input at the slot's rank.

    Where all tensors have it, they are taken as they are, not copied. Where one is smaller, or begins where no number of its type may, all
    of them are copied into one block of memory with zeros behind the smaller ones: what they were views of is then needed no more, and the
    block goes back to the system whole. Scales, a few thousand numbers, are copied always. Where the base has a correction, it stands
    behind every adapter: it is copied once, when the adapter is read.

    Args:
        tensors: name in an adapter's file -> array in the slot's dtype, of any rank up to the slot's; those of other slots are passed over.
        zeros: every graph input, in slot order, at the slot's rank; they stand for slots that are not there, not copied.
    """
    shapes = {name: zero.shape for name, zero in zeros.items() if name in tensors and name not in zeros.scales}
    arrays = {name: tensors[name] for name in shapes}
    if any(tensors[name].shape != shape or not tensors[name].flags.aligned for name, shape in shapes.items()):
        arrays = _grown(tensors, shapes, zeros)
    scales = zeros.corrected(scale_vectors(tensors, zeros.slots))
    return Buffers({**zeros, **arrays, **zeros.encoded(scales)}, scales=scales)


def whole_buffers(inputs: Mapping[str, NDArray[Any]], zeros: ZeroBuffers) -> Buffers:
    """Buffers of every graph input at the slot's rank, the base's correction behind the adapter's channels.

    Args:
        inputs: graph input name -> array in the slot's dtype, zero in the correction's channels; scales are floats.
    """
    scales = zeros.corrected({name: inputs[name] for name in zeros.scales})
    arrays = {name: array + zeros[name] for name, array in inputs.items()} if zeros.slots.corrected else inputs
    return Buffers({**arrays, **zeros.encoded(scales)}, scales=scales)


def beside_correction(arrays: Mapping[str, NDArray[Any]], zeros: ZeroBuffers, slot: Slot) -> dict[str, NDArray[Any]]:
    """A and B of a slot, of a sum, with the base's correction where it is not there yet: zeros stand in its channels."""
    if slot.correction is msgspec.UNSET:
        return dict(arrays)
    first = slot.adapter_rank
    if arrays[slot.a_name][first:].any():
        return dict(arrays)
    return {name: array + zeros[name] for name, array in arrays.items()}


def _grown(tensors: Mapping[str, NDArray[Any]], shapes: Mapping[str, tuple[int, ...]], zeros: ZeroBuffers) -> dict[str, NDArray[Any]]:
    """Copies of these shapes, side by side in one block, with the base's correction behind them; what is zero in them is not written."""
    places: dict[str, int] = {}
    end = 0
    for name, shape in shapes.items():
        places[name] = end
        end += -(-math.prod(shape) * tensors[name].itemsize // _ALIGNED_BYTES) * _ALIGNED_BYTES
    numbers = sum(tensors[name].nbytes for name in shapes)
    block = memory_block(end, large_pages=2 * numbers > end)
    mended = {part: slot for slot in zeros.slots.slots if slot.correction is not msgspec.UNSET for part in (slot.a_name, slot.b_name)}
    grown: dict[str, NDArray[Any]] = {}
    for name, shape in shapes.items():
        tensor = tensors[name]
        grown[name] = whole = np.ndarray(shape, tensor.dtype, block, places[name])
        if (slot := mended.get(name)) is not None:
            behind = slice(slot.adapter_rank, None)
            channels = behind if name == slot.a_name else (slice(None), behind)
            whole[channels] = zeros[name][channels]
        whole[tuple(map(slice, tensor.shape))] = tensor
    return grown
