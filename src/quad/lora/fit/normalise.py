"""Normalised slots: an adapter's factors at one size, and a scale for each rank channel. Source: docs/method.md section 3.

    B A = B^ diag(s) A^        max |a^_k| = 1,  max |b^_k| = u,  s_k = max |a_k| max |b_k| / u

| symbol | here |
|---|---|
| a_k, b_k | row k of A, column k of B: one rank channel |
| u | the slot's unit: the largest s of an adapter of the build, so that theirs are 1 at most |

Steps of A^ and B^ are 1 / qmax and u / qmax whatever the adapter is, so channel k of the product is expected to be wrong by

    E_k ~ s_k^2 (out |a^_k|^2 + in |b^_k|^2)

which says, before any encoding is known, whether the channels round better as they came or as the singular value decomposition gives them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from quad.core.padding import scale_vectors
from quad.core.profile import Profile
from quad.core.slots import SlotTable
from quad.lora.adapter import FloatAdapter, LowRank
from quad.lora.fit.forms import Form, form_of, pair_of, rotate
from quad.lora.fit.slot_inputs import slot_inputs

_WORTH = 0.99  # another form must be better by this


@dataclass(frozen=True)
class NormalisedPair:
    """One module's update `B diag(s) A`.

    Args:
        pair: A with 1 as the largest magnitude of every row, B of every column; zeros where a channel's part of the product is zero.
        scales: `(r,)` float32.
    """

    pair: LowRank
    scales: NDArray[np.float32]


_NORMALISED: WeakKeyDictionary[LowRank, NormalisedPair] = WeakKeyDictionary()


def normalise_pair(pair: LowRank) -> NormalisedPair:
    """The same product in normalised factors, in those of the forms tried that are expected to round best.

    It looks at one adapter alone, so one that is admitted later is treated the same way. Many stages of a build ask for the same pair: it
    is computed once while the pair lives.
    """
    if pair not in _NORMALISED:
        start = form_of(pair).alive_only()
        rotated = rotate(start) if start.alive.any() else start
        _NORMALISED[pair] = _normalised(rotated if _expected_error(rotated) < _WORTH * _expected_error(start) else start, pair)
    return _NORMALISED[pair]


def _sizes(form: Form) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Largest magnitudes of the rows of A and the columns of B, 1 where the channel is zero."""
    peak_a, peak_b = form.peaks
    return np.where(form.alive, peak_a, 1.0), np.where(form.alive, peak_b, 1.0)


def _expected_error(form: Form) -> float:
    size_a, size_b = _sizes(form)
    inputs, outputs = form.a.shape[1], len(form.b)
    return float((outputs * size_b**2 @ np.square(form.a).sum(axis=1)) + (inputs * size_a**2 @ np.square(form.b).sum(axis=0)))


def _normalised(form: Form, like: LowRank) -> NormalisedPair:
    size_a, size_b = _sizes(form)
    unit = Form(form.a / size_a[:, None], form.b / size_b).alive_only()
    return NormalisedPair(pair_of(unit, like), np.where(form.alive, size_a * size_b, 0.0).astype(np.float32))


def slot_units(adapters: Iterable[FloatAdapter], table: SlotTable) -> dict[str, float]:
    """Slot path -> the largest scale that one of the adapters needs there, 1 where none has any."""
    units: dict[str, float] = {}
    for adapter in adapters:
        for path, pair in adapter.weights.items():
            units[path] = max(units.get(path, 0.0), float(normalise_pair(pair).scales.max(initial=0.0)))
    return {slot.path: units.get(slot.path, 0.0) or 1.0 for slot in table.slots}


def profile_units(table: SlotTable, profile: Profile) -> dict[str, float]:
    """Slot path -> the end of B's encoding; a slot without one is left out."""
    units = {}
    for slot in table.slots:
        encoding = profile.component(slot.component).get(slot.b_name)
        if encoding is not None:
            units[slot.path] = encoding.scale[0] * encoding.qmax
    return units


def normalised_inputs(adapter: FloatAdapter, table: SlotTable, units: Mapping[str, float] | None = None) -> dict[str, NDArray[np.float32]]:
    """Float slot inputs of the normalised adapter, zero-padded, scales among them.

    Args:
        table: of normalised slots.
        units: slot path -> u; 1 where there is none.

    Raises:
        CompatibilityError: as `slot_inputs`.
    """
    weights, scales = {}, {}
    for path, pair in adapter.weights.items():
        normalised, unit = normalise_pair(pair), np.float32((units or {}).get(path, 1.0))
        weights[path] = LowRank(normalised.pair.a, normalised.pair.b * unit)
        scales[path] = normalised.scales / unit
    inputs = slot_inputs(replace(adapter, weights=weights), table)
    named = {slot.scale_name: scales[slot.path] for slot in table.slots if slot.path in scales}
    return {**inputs, **scale_vectors(named, table)}
