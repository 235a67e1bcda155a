"""Normalised slots: an adapter's `A x` brought into its range, and the weights with which it runs.

A weight is a factor of the scales, so A and B never leave their encodings, whatever the adapter and its weight are. `A x` may leave its
range: then rows of A shrink and their scales grow. And the network's own activations may, which decides how large a weight is right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from quad.admit.trial import MOST_LOST, StoredCalls, Trial, Uses
from quad.core.decibels import EffectEnergy
from quad.core.padding import scale_vectors, slot_scales
from quad.core.slots import SlotTable
from quad.core.tensor_names import lora_mid_name
from quad.runtime.adapters.buffers import Buffers, ZeroBuffers
from quad.runtime.adapters.weighted_sum import mix_adapters

MOST_WEIGHT, LEAST_WEIGHT = 4.0, 0.5
_STEPS_DOWN = (MOST_WEIGHT, 2.0)  # tried beside 1, the largest first; what it takes, smaller ones take too
_TRIED = (LEAST_WEIGHT, 1.0, *reversed(_STEPS_DOWN))
_REACH = 0.8  # how far `A x` goes, in ranges, where it went beyond the end
# Where activations are cut off, the effect itself decides. Toyland's later adapters at mixed:80: what costs one activation 12 % of its
# energy leaves the effect 1.000 of what it should be.
GAIN_WITHIN, LEAST_EFFECT_DB = 0.02, 20.0


@dataclass(frozen=True, kw_only=True)
class WeightUse:
    """Activations with the adapter at one weight, and its effect where they are cut off.

    Args:
        lost: largest share of an activation's energy that its range cuts off beyond what it does with others.
        clipped: how many lose too much.
        gain, effect_db: of the effect on the call that the adapter changes most, against the same graph with its activations as floats;
            None where none is clipped, and where it cannot be measured.
    """

    lost: float
    clipped: int
    gain: float | None = None
    effect_db: float | None = None

    @property
    def right(self) -> bool:
        """Nothing to speak of is cut off, or the effect comes through all the same."""
        if self.gain is None or self.effect_db is None:
            return not self.clipped
        return abs(self.gain - 1.0) <= GAIN_WITHIN and self.effect_db >= LEAST_EFFECT_DB

    @property
    def effect(self) -> str:
        """For people; empty where it was not measured."""
        return "" if self.gain is None else f"{self.gain:.3f} of what it should be, {self.effect_db:.1f} dB"

    def to_json(self) -> dict[str, Any]:
        """All that was measured."""
        measured = {} if self.gain is None else {"gain": self.gain, "effect_db": self.effect_db}
        return {"lost": self.lost, "clipped": self.clipped, **measured}


@dataclass(frozen=True)
class TriedWeights:
    """Weight -> what the network's activations lose with it, of those that were tried."""

    uses: Mapping[float, WeightUse]

    @property
    def most(self) -> float | None:
        """The largest with which the adapter is right; None where it is with none of them."""
        return max((weight for weight, use in self.uses.items() if use.right), default=None)

    @property
    def at_the_least(self) -> str:
        """For a refusal: the smallest weight is not right either; empty where it was not tried."""
        if (use := self.uses.get(LEAST_WEIGHT)) is None:
            return ""
        effect = f"its effect is {use.effect}" if use.effect else f"{use.clipped} do"
        return f"at weight {LEAST_WEIGHT:g} {effect}; "

    def to_json(self) -> dict[str, Any]:
        """Weight -> `lost` and `clipped`, and where an activation is, `gain` and `effect_db`; in order."""
        return {f"{weight:g}": use.to_json() for weight, use in sorted(self.uses.items())}

    def __str__(self) -> str:
        """For people."""
        lost = ", ".join(f"{use.lost:.2%} at {weight:g}" for weight, use in sorted(self.uses.items()))
        effects = [f"at {weight:g} {use.effect}" for weight, use in sorted(self.uses.items()) if use.effect]
        return f"activations lose at most {lost} of their energy" + (f"; the effect is {', '.join(effects)}" if effects else "")


def long_mids(uses: Uses, slots: SlotTable) -> dict[str, float]:
    """Slot path -> how far `A x` goes beyond its range, of those where it does.

    Args:
        uses: of all activations, with the adapter.
    """
    reaches = {slot.path: uses[name].reach for slot in slots.slots if (name := lora_mid_name(slot.path)) in uses}
    return {path: reach for path, reach in reaches.items() if reach > 1.0}


def shrunk(buffers: Buffers, reaches: Mapping[str, float], zeros: ZeroBuffers) -> Buffers:
    """The same products with `A x` inside of its range: rows of A shorter, scales larger by as much.

    Args:
        reaches: slot path -> how far `A x` goes, in ranges.
    """
    slots, arrays = zeros.slots.by_path(), {**buffers}
    scales = {path: part.copy() for path, part in slot_scales(buffers.scales, zeros.slots).items()}
    for path, reach in reaches.items():
        a, factor, own = arrays[slots[path].a_name].copy(), _REACH / reach, slice(slots[path].adapter_rank)
        rows = a[own] * factor
        a[own] = rows if a.dtype.kind == "f" else np.rint(rows)
        arrays[slots[path].a_name] = a
        scales[path][own] = (scales[path][own] / factor).astype(np.float32)
    vectors = scale_vectors({slots[path].scale_name: part for path, part in scales.items()}, zeros.slots)
    return Buffers({**arrays, **zeros.encoded(vectors)}, scales=vectors)


def try_weights(name: str, calls: StoredCalls, trial: Trial, buffers: Buffers) -> TriedWeights:
    """Find the largest weight with which the adapter is right: 1 was tried on all calls, others are on the loudest.

    Args:
        trial: with weight 1; of a graph whose activations can be looked into.
        buffers: of the new adapter.
    """
    slots, others = calls.zeros.slots, {site: use.lost for site, use in trial.before.items()}
    if trial.before is trial.sites:  # it loses nothing, and nobody was asked what others do
        others = {}

    @cache
    def at_weight(weight: float) -> Buffers:
        return mix_adapters({name: buffers}, {name: weight}, slots, calls.zeros)[0]

    @cache
    def effects() -> Mapping[float, EffectEnergy]:
        return calls.effects({weight: at_weight(weight) for weight in _TRIED}, trial.loudest)

    def with_effect(weight: float, use: WeightUse) -> WeightUse:
        energy = effects().get(weight) if use.clipped else None
        return use if energy is None or energy.true == 0.0 else replace(use, gain=energy.gain, effect_db=energy.sqnr_db())

    def use_at(weight: float) -> WeightUse:
        uses = calls.uses(at_weight(weight), trial.loudest)
        return with_effect(weight, _use(uses, lambda site: max(others.get(site, 0.0), calls.base_uses(trial.loudest)[site].lost)))

    uses = {1.0: with_effect(1.0, _use(trial.sites, lambda site: trial.before[site].lost))}
    for weight in _STEPS_DOWN if uses[1.0].right else (LEAST_WEIGHT,):
        uses[weight] = use_at(weight)
        if uses[weight].right:
            break
    return TriedWeights(uses)


def _use(uses: Uses, others: Callable[[str], float]) -> WeightUse:
    lost = [max(0.0, use.lost - others(site)) if use.lost else 0.0 for site, use in uses.items()]
    return WeightUse(lost=max(lost, default=0.0), clipped=sum(share > MOST_LOST for share in lost))
