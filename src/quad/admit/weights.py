"""Normalised slots: an adapter's `A x` brought into its range, and the weights with which it runs.

A weight is a factor of the scales, so A and B never leave their encodings, whatever the adapter and its weight are. `A x` may leave its
range: then rows of A shrink and their scales grow. And the network's own activations may, which decides how large a weight is right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from quad.admit.trial import MOST_LOST, StoredCalls, Trial, Uses
from quad.core.padding import scale_vectors, slot_scales
from quad.core.slots import SlotTable
from quad.core.tensor_names import lora_mid_name
from quad.runtime.adapters.buffers import Buffers, ZeroBuffers
from quad.runtime.adapters.weighted_sum import mix_adapters

MOST_WEIGHT, LEAST_WEIGHT = 4.0, 0.5
_STEPS_DOWN = (MOST_WEIGHT, 2.0)  # tried beside 1, the largest first; what it takes, smaller ones take too
_REACH = 0.8  # how far `A x` goes, in ranges, where it went beyond the end


@dataclass(frozen=True)
class WeightUse:
    """Activations with the adapter at one weight.

    Args:
        lost: largest share of an activation's energy that its range cuts off beyond what it does with others.
        clipped: how many lose too much.
    """

    lost: float
    clipped: int


@dataclass(frozen=True)
class TriedWeights:
    """Weight -> what the network's activations lose with it, of those that were tried."""

    uses: Mapping[float, WeightUse]

    @property
    def most(self) -> float | None:
        """The largest that loses nothing to speak of; None where each of them does."""
        return max((weight for weight, use in self.uses.items() if not use.clipped), default=None)

    def to_json(self) -> dict[str, Any]:
        """Weight -> `lost` and `clipped`, in order."""
        return {f"{weight:g}": {"lost": use.lost, "clipped": use.clipped} for weight, use in sorted(self.uses.items())}

    def __str__(self) -> str:
        """For people."""
        lost = ", ".join(f"{use.lost:.2%} at {weight:g}" for weight, use in sorted(self.uses.items()))
        return f"activations lose at most {lost} of their energy"


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
        a, factor = arrays[slots[path].a_name], _REACH / reach
        rows = a * factor
        arrays[slots[path].a_name] = (rows if a.dtype.kind == "f" else np.rint(rows)).astype(a.dtype)
        scales[path] = (scales[path] / factor).astype(np.float32)
    vectors = scale_vectors({slots[path].scale_name: part for path, part in scales.items()}, zeros.slots)
    return Buffers({**arrays, **zeros.encoded(vectors)}, scales=vectors)


def try_weights(name: str, calls: StoredCalls, trial: Trial, buffers: Buffers) -> TriedWeights:
    """Find the largest weight that the network's activations take: with 1, which was tried on all calls, and on the loudest with others.

    Args:
        trial: with weight 1; of a graph whose activations can be looked into.
        buffers: of the new adapter.
    """
    slots, others = calls.zeros.slots, {site: use.lost for site, use in trial.before.items()}
    if trial.before is trial.sites:  # it loses nothing, and nobody was asked what others do
        others = {}

    def use_at(weight: float) -> WeightUse:
        mixed, _ = mix_adapters({name: buffers}, {name: weight}, slots, calls.zeros)
        return _use(calls.uses(mixed, trial.loudest), lambda site: max(others.get(site, 0.0), calls.base_uses(trial.loudest)[site].lost))

    first = _use(trial.sites, lambda site: trial.before[site].lost)
    uses = {1.0: first}
    for weight in _STEPS_DOWN if not first.clipped else (LEAST_WEIGHT,):
        uses[weight] = use_at(weight)
        if not uses[weight].clipped:
            break
    return TriedWeights(uses)


def _use(uses: Uses, others: Callable[[str], float]) -> WeightUse:
    lost = [max(0.0, use.lost - others(site)) if use.lost else 0.0 for site, use in uses.items()]
    return WeightUse(max(lost, default=0.0), sum(share > MOST_LOST for share in lost))
