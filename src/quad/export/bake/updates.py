"""The update of each slot in real numbers: `U = sum_i w_i B_i diag(s_i) A_i`, of the integers that ship, in double precision.

s is the scale of each rank channel where slots are normalised, else 1. Unlike a mix on the slots' lattice nothing is rounded: not the
weighted B, and no rank is too large.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from quad.core.profile import Profile
from quad.core.slots import Slot, SlotTable
from quad.export.bake.merge import Real
from quad.runtime.adapters.buffers import Buffers


def slot_updates(parts: Mapping[str, Buffers], weights: Mapping[str, float], slots: SlotTable, profile: Profile) -> dict[str, Real]:
    """Slot path -> `(out, in)`, or `(out, in, rows, columns)` of a convolution; slots that nothing is added to are not there.

    Args:
        parts: adapter name -> its buffers.
        slots: of one component.
    """
    scales = {name: _scales(buffers, slots) for name, buffers in parts.items()}
    updates: dict[str, Real] = {}
    for slot in slots.slots:
        update = sum(weights[name] * _product(slot, buffers, profile, scales[name].get(slot.path)) for name, buffers in parts.items())
        if isinstance(update, np.ndarray) and update.any():
            updates[slot.path] = update
    return updates


def _scales(buffers: Buffers, slots: SlotTable) -> dict[str, Real]:
    """Slot path -> scale of each rank channel `(rank,)`; empty where slots are not normalised."""
    scales: dict[str, Real] = {}
    for name, owners in slots.scale_inputs().items():
        places = np.cumsum([slot.rank for slot in owners])[:-1]
        parts = np.split(buffers.scales[name].astype(np.float64), places)
        scales |= {slot.path: part for slot, part in zip(owners, parts, strict=True)}
    return scales


def _product(slot: Slot, buffers: Buffers, profile: Profile, scale: Real | None) -> Real:
    """The product of one adapter."""
    encodings = profile.component(slot.component)
    down, up = (
        (encodings[name].dequantize(buffers[name]) if name in encodings else buffers[name]).astype(np.float64)
        for name in (slot.a_name, slot.b_name)
    )
    down, up = down.reshape(slot.rank, -1), up.reshape(slot.out_features, slot.rank)
    used = np.flatnonzero(down.any(axis=1))
    weighted = up[:, used] if scale is None else up[:, used] * scale[used]
    return (weighted @ down[used]).reshape(slot.out_features, *slot.a_shape[1:])
