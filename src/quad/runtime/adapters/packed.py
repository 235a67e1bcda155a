"""An adapter ready to ship, and its manifest: what a build puts into a bundle, and an admission into a pack."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from quad.core.manifest import FORMAT_VERSION, AdapterManifest, AdapterQuality, TaskSpec
from quad.core.profile import Profile
from quad.core.sampling import AdapterDefaults
from quad.core.slots import SlotDtype, SlotTable
from quad.runtime.adapters.buffers import scale_encodings
from quad.runtime.adapters.weighted_sum import headroom

PARENTS = ("slots", "profile", "graph", "correction")  # of a bundle, that an adapter names; the last one where it is there
_BITS: Mapping[SlotDtype, Literal[8, 16, 32]] = {"int8": 8, "int16": 16, "float32": 32}


@dataclass(frozen=True, kw_only=True)
class PackedAdapter:
    """An adapter ready to ship.

    Args:
        tensors: slot inputs in the slot's dtype, at the adapter's own ranks (`padding.trim`); a slot that is not there is zero.
        rank: its own largest rank.
        source: digest of the file it came from.
        quality: as its alignment measured it, where it was aligned.
        defaults: how it is meant to be run.
        group: whose graph it runs in, of the bundle's groups of adapters, counted from 0.
    """

    name: str
    tensors: Mapping[str, NDArray[np.generic]]
    rank: int
    source: str
    quality: AdapterQuality | msgspec.UnsetType = msgspec.UNSET
    defaults: AdapterDefaults | msgspec.UnsetType = msgspec.UNSET
    group: int = 0


def adapter_manifest(
    adapter: PackedAdapter, slots: SlotTable, profile: Profile, parents: Mapping[str, str], tasks: Mapping[str, TaskSpec]
) -> AdapterManifest:
    """An adapter's manifest before its file is written: size and digest are for the writer to set.

    Args:
        slots, profile, parents: the bundle's.
    """
    room = headroom(adapter.tensors, slots, scale_encodings(slots, profile))
    return AdapterManifest(
        name=adapter.name,
        format_version=FORMAT_VERSION,
        rank=adapter.rank,
        bits=_BITS[slots.slots[0].dtype],  # one type in all slots, also where an adapter is all zeros and has no tensor
        size_bytes=0,
        sha256="",
        parents={"source": adapter.source, **{key: parents[key] for key in PARENTS if key in parents}},
        tasks=dict(tasks),
        headroom=room if math.isfinite(room) else msgspec.UNSET,
        quality=adapter.quality,
        defaults=adapter.defaults,
        group=adapter.group or msgspec.UNSET,
    )
