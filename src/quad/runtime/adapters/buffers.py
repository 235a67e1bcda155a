"""The arrays that are bound to a graph's slot inputs, and the rules that a file's tensors keep to become them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from quad.core.errors import VerificationError, mismatch
from quad.core.padding import own_shapes
from quad.core.slots import Slot, SlotTable

# What an array and an engine's tensor over it take beside its numbers: 0.8 kB measured, and what an allocator loses.
BESIDE_BYTES = 1_000


class Buffers(dict[str, NDArray[Any]]):
    """Graph input name -> array, not to be written to. Who uses the arrays holds the dict.

    Args:
        prepared: session -> these arrays as it has checked and wrapped them, so that they are bound again in a fraction of a
            millisecond; it goes with the buffers, and with the session.
    """

    __slots__ = ("__weakref__", "prepared")
    prepared: WeakKeyDictionary[Any, Any]

    def __init__(self, *arrays: Any) -> None:
        super().__init__(*arrays)
        self.prepared = WeakKeyDictionary()


@dataclass(frozen=True, kw_only=True)
class AdapterMix:
    """The adapters of one picture, as they are bound to its graphs; one adapter alone and the base are mixes too.

    Args:
        weights: adapter name -> weight.
        notes: on what of a mix was lost.
    """

    weights: Mapping[str, float]
    buffers: Buffers
    notes: tuple[str, ...] = ()


def zero_buffers(slots: SlotTable) -> Buffers:
    """The zero adapter, the base bit for bit: all slot encodings are symmetric, so integer zero is zero.

    Inputs of one shape share one array; not to be written to.
    """
    shared: dict[tuple[str, tuple[int, ...]], NDArray[Any]] = {}
    zeros = Buffers()
    for slot in slots.slots:
        for name, shape in ((slot.a_name, slot.a_shape), (slot.b_name, slot.b_shape)):
            key = (slot.dtype, shape)
            if key not in shared:
                shared[key] = np.zeros(shape, slot.dtype)
            zeros[name] = shared[key]
    return zeros


def padded_bytes(tensors: Iterable[str], zeros: Buffers) -> int:
    """Memory of an adapter with these tensors at the slots' ranks, and what it takes to hold them; names of no slot are passed over."""
    return sum(zeros[name].nbytes + BESIDE_BYTES for name in tensors if name in zeros)


def largest_bytes(slots: SlotTable) -> int:
    """Memory of an adapter that has every slot: what is bound is as large as the slots, whatever the adapter's own rank."""
    sizes = (np.dtype(slot.dtype).itemsize * (math.prod(slot.a_shape) + math.prod(slot.b_shape)) for slot in slots.slots)
    return sum(sizes)


def check_tensors(name: str, tensors: Mapping[str, NDArray[Any]], slots: SlotTable) -> None:
    """Refuse what is no adapter for these slots: A and B come in pairs, in the slot's type, of one rank from 1 to the slot's.

    Args:
        name: the adapter's, for messages.
        tensors: as a file holds them; slots that are not among them are zero.

    Raises:
        VerificationError: the tensors are not what the slots digest promises.
    """
    input_names = {input_name for slot in slots.slots for input_name in (slot.a_name, slot.b_name)}
    if odd := sorted(tensors.keys() - input_names):
        raise _odd(f"adapter {name!r}", f"tensors of {len(slots.slots)} slots", f"{odd[0]}, which is none")
    for slot in slots.slots:
        parts = [part for part in (slot.a_name, slot.b_name) if part in tensors]
        if len(parts) == 1:
            raise _odd(f"adapter {name!r}, slot {slot.path}", "both A and B, or neither", f"{parts[0]} alone")
        if parts:
            _check_pair(f"adapter {name!r}", slot, tensors[slot.a_name], tensors[slot.b_name])


def _check_pair(where: str, slot: Slot, a: NDArray[Any], b: NDArray[Any]) -> None:
    rank = a.shape[0] if a.ndim else 0
    if not 1 <= rank <= slot.rank:
        raise _odd(f"{where}, {slot.a_name}", f"a rank from 1 to {slot.rank}", f"shape {a.shape}")
    for name, array, shape in zip((slot.a_name, slot.b_name), (a, b), own_shapes(slot, rank), strict=True):
        if (array.dtype, array.shape) != (np.dtype(slot.dtype), shape):
            raise _odd(f"{where}, {name}", f"{slot.dtype} {shape}", f"{array.dtype} {array.shape}")


def _odd(where: str, expected: str, actual: str) -> VerificationError:
    return VerificationError(mismatch(where, expected, actual, "pack it again with quad adapt"))
