"""The slot inputs of a graph as floats: an adapter's matrices, zero-padded to the slots' ranks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quad.core.errors import CompatibilityError, mismatch
from quad.core.padding import scale_vectors
from quad.core.slots import Slot, SlotTable
from quad.lora.adapter import FloatAdapter, LowRank


def slot_inputs(adapter: FloatAdapter | None, table: SlotTable) -> dict[str, NDArray[np.float32]]:
    """Every slot input of one adapter, zero-padded to the slot's rank; None is the zero adapter. Scales of normalised slots are 1.

    Raises:
        CompatibilityError: the adapter has a target without a slot, or one that does not fit its slot.
    """
    weights = {} if adapter is None else adapter.weights
    name = "" if adapter is None else adapter.name
    slots = table.by_path()
    if outside := [path for path in weights if path not in slots]:
        raise CompatibilityError(
            mismatch(
                f"adapter {name!r}", f"targets among the {len(slots)} slots", ", ".join(outside[:8]), "build the bundle with this adapter"
            )
        )
    inputs = {n: np.zeros(shape, np.float32) for n, shape in table.input_shapes().items()}
    for path, pair in weights.items():
        inputs[slots[path].a_name], inputs[slots[path].b_name] = _pad(name, slots[path], pair)
    ones = {slots[path].scale_name: np.ones(pair.rank, np.float32) for path, pair in weights.items()}
    return {**inputs, **scale_vectors(ones, table)}


def _pad(name: str, slot: Slot, pair: LowRank) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    a, b = np.zeros(slot.a_shape, np.float32), np.zeros(slot.b_shape, np.float32)
    fits = pair.a.shape[1:] == a.shape[1:] and pair.b.shape[0] == b.shape[0] and pair.rank <= slot.adapter_rank
    if not fits:
        raise CompatibilityError(
            mismatch(
                f"adapter {name!r}, slot {slot.path!r}",
                f"A up to {slot.a_shape}, B up to {slot.b_shape}",
                f"{pair.a.shape} and {pair.b.shape}",
                "build the bundle with this adapter",
            )
        )
    a[: pair.rank], b[:, : pair.rank] = pair.a, pair.b
    return a, b
