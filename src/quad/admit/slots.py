"""Does a new adapter fit the slots of a frozen bundle: rank, ranges and steps, slot by slot.

A slot's encodings were made for other adapters. The new one is cut to the slot's rank, brought into the factors that suit the encodings
(`quad.lora.fit`), and measured there before anything runs: what is clipped, and how right the product B A comes out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quad.core.decibels import sqnr_db
from quad.core.errors import CompatibilityError, mismatch
from quad.core.profile import Profile
from quad.core.slots import Slot, SlotTable
from quad.lora.fit.channel_gains import smooth_adapter
from quad.lora.fit.integers import balance, require_finite
from quad.lora.fit.normalise import normalise_pair, profile_units
from quad.lora.fit.rescale import rescale
from quad.lora.read import FloatAdapter, LowRank, cut, require_slots

# A product that rounding leaves less right than this (noise a third of it) is not the adapter's any more; Toyland's six have 72 dB and more
# at their worst slot with 16 bits. It counts where the slot holds a share of the adapter's update that can be seen.
LEAST_DB, SEEN_SHARE = 10.0, 0.01
_LISTED = 6
Matrix = NDArray[np.float64]
Scales = NDArray[np.float32]


class UnfitError(CompatibilityError):
    """An adapter that is refused for what was measured of it."""

    def __init__(self, message: str, reasons: Mapping[str, str]) -> None:
        """Args:
        reasons: slot or activation -> why it does not take the adapter, all of them.
        """
        super().__init__(message)
        self.reasons = dict(reasons)


@dataclass(frozen=True, kw_only=True)
class SlotFit:
    """One slot of the new adapter under the frozen encodings.

    Args:
        rank, slot_rank: the adapter's own, and the most that the slot has.
        energy: share of the update's sum of squares that is left after conversion and cutting.
        share: the slot's part of the whole adapter's update, of its sum of squares.
        product_db: SQNR of B A as integers.
        clipped: share of the entries of A and B that lie outside of their ranges.
        room: range of A, and of B, over the adapter's largest entry there; under 1 it is clipped.
    """

    path: str
    rank: int
    slot_rank: int
    energy: float
    share: float
    product_db: float
    clipped: float
    room: tuple[float, float]

    @property
    def reason(self) -> str:
        """Why the slot refuses the adapter; empty where it takes it."""
        if self.clipped > 0.0:
            factor, side = min(zip(self.room, "AB", strict=True))
            return f"{self.clipped:.2%} of its weights clipped, {side} is {1 / factor:.2f} times the frozen range"
        if self.product_db < LEAST_DB and self.share >= SEEN_SHARE:
            return f"too fine for the frozen steps, B A right to {self.product_db:.1f} dB"
        return ""

    def to_json(self) -> dict[str, Any]:
        """All but the path."""
        room_a, room_b = self.room
        shown = {"rank": self.rank, "slot_rank": self.slot_rank, "energy": self.energy, "share": self.share}
        return {**shown, "product_db": self.product_db, "clipped": self.clipped, "room_a": room_a, "room_b": room_b}


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """An adapter that was brought to the slots.

    Args:
        adapter: of the slots' ranks and of the profile's channel gains, as the frozen network takes it.
        components: in which its update is not zero.
        slots: how each of its slots takes it; empty where nothing is quantized.
        applied: share of the whole update's sum of squares that is left after conversion and cutting.
    """

    adapter: FloatAdapter
    components: frozenset[str]
    slots: tuple[SlotFit, ...]
    applied: float

    @property
    def product_db(self) -> float | None:
        """SQNR of all products together; None where nothing is quantized."""
        return sqnr_db(1.0, sum(slot.share * 10 ** (-slot.product_db / 10) for slot in self.slots)) if self.slots else None

    @property
    def energy(self) -> float:
        """The least share of a slot's update that is left after conversion and cutting."""
        return min(self.adapter.energy.values(), default=1.0)


def fit(adapter: FloatAdapter, table: SlotTable, profile: Profile) -> Fitted:
    """Bring an adapter to a frozen bundle's slots and measure it there; nothing is refused for being clipped or cut.

    Raises:
        CompatibilityError: a target has no slot. InputError: a weight is NaN or infinite.
    """
    slots = table.of_adapters.by_path()
    require_finite(adapter)
    require_slots(adapter.name, (path for path in adapter.weights if path not in slots))
    small = with_gains(_cut_to(adapter, slots), profile)
    powers = {path: _power(pair) for path, pair in small.weights.items()}
    components = frozenset(slots[path].component for path, power in powers.items() if power > 0.0)
    total = sum(powers.values())
    whole = sum(power / max(small.energy.get(path, 1.0), 1e-30) for path, power in powers.items())
    applied = total / whole if whole > 0.0 else 1.0
    if profile.has_float_slots:
        return Fitted(adapter=small, components=components, slots=(), applied=applied)
    total = total or 1.0
    fits = [_measure(slots[path], pair, scales, profile) for path, (pair, scales) in _ready(small, table, profile).items()]
    slots_fit = tuple(
        replace(slot, rank=adapter.weights[slot.path].rank, energy=small.energy.get(slot.path, 1.0), share=powers[slot.path] / total)
        for slot in fits
    )
    return Fitted(adapter=small, components=components, slots=slots_fit, applied=applied)


def _ready(adapter: FloatAdapter, table: SlotTable, profile: Profile) -> dict[str, tuple[LowRank, Scales | None]]:
    """Slot path -> the factors that are rounded, and of normalised slots the scales of their rank channels."""
    if not table.normalised:
        return {path: (pair, None) for path, pair in rescale(balance(adapter), table, profile).weights.items()}
    ready: dict[str, tuple[LowRank, Scales | None]] = {}
    units = profile_units(table, profile)
    for path, pair in adapter.weights.items():
        normalised, unit = normalise_pair(pair), np.float32(units.get(path, 1.0))
        ready[path] = LowRank(normalised.pair.a, normalised.pair.b * unit), normalised.scales / unit
    return ready


def with_gains(adapter: FloatAdapter, profile: Profile) -> FloatAdapter:
    """The adapter for the networks as they were equalized before they were frozen."""
    return smooth_adapter(adapter, {path: gain for gains in profile.gains.values() for path, gain in gains.items()})


def refuse_unfit(fitted: Fitted, bundle: str, min_energy: float) -> None:
    """Raise for an adapter of zeros, and for the slots that do not take it.

    Raises:
        CompatibilityError: names the slots, worst first, and the reason of each.
    """
    adapter, where = fitted.adapter, f"adapter {fitted.adapter.name!r}"
    if not fitted.components:
        raise CompatibilityError(mismatch(where, "an update of the network", "zeros alone", "is it trained?"))
    cut_off = {
        path: f"keeps {energy:.3f} of its update at rank {adapter.weights[path].rank}, {min_energy:g} is asked for"
        for path, energy in sorted(adapter.energy.items(), key=lambda item: item[1])
        if energy < min_energy
    }
    unfit = {slot.path: slot.reason for slot in worst(fitted.slots) if slot.reason and slot.path not in cut_off}
    if reasons := {**cut_off, **unfit}:
        hint = "build the bundle again with this adapter" + ("" if unfit else ", or ask for less: --min-energy")
        expected = f"one that all {len(adapter.weights)} of its slots of bundle {bundle!r} take"
        raise UnfitError(mismatch(where, expected, f"{len(reasons)} that do not: {listed(reasons)}", hint), reasons)


def listed(reasons: Mapping[str, str]) -> str:
    """The first few reasons, by name."""
    shown = [f"{name} ({reason})" for name, reason in list(reasons.items())[:_LISTED]]
    return "; ".join(shown) + (f"; and {len(reasons) - _LISTED} more" if len(reasons) > _LISTED else "")


def _cut_to(adapter: FloatAdapter, slots: Mapping[str, Slot]) -> FloatAdapter:
    """At most the slots' ranks; what is not above them stays as it is."""
    weights, energy, shares = dict(adapter.weights), dict(adapter.energy), []
    for path, pair in adapter.weights.items():
        if pair.rank > slots[path].adapter_rank:
            weights[path], share = cut(pair, slots[path].adapter_rank)
            energy[path] = energy.get(path, 1.0) * share
            shares.append(share)
    if not shares:
        return adapter
    saved = f"energy kept {min(shares):.4f} at worst, {np.mean(shares):.4f} on average"
    note = f"{len(shares)} of {len(weights)} modules reduced to their slot's rank, {saved}"
    return replace(adapter, weights=weights, rank=max(pair.rank for pair in weights.values()), energy=energy, notes=(*adapter.notes, note))


def _measure(slot: Slot, pair: LowRank, scales: Scales | None, profile: Profile) -> SlotFit:
    """Of an aligned pair; what is the whole adapter's is left for the caller."""
    encodings, rounded, outside, room = profile.component(slot.component), [], 0, []
    parts = ((slot.a_name, pair.a), (slot.b_name, pair.b))
    for name, values in parts:
        if name not in encodings:
            raise CompatibilityError(mismatch(f"slot {slot.path!r}", f"an encoding of {name}", "none", "build the bundle again"))
        step = encodings[name].scale[0]
        limit, largest = step * encodings[name].qmax, float(np.abs(values).max(initial=0.0))
        # Half a step beyond its end is still rounded to the end.
        outside += int((np.abs(values) > limit + 0.5 * step).sum())
        room.append(limit / largest if largest > 0.0 else math.inf)
        rounded.append(encodings[name].dequantize(encodings[name].quantize(values)))
    clipped = outside / sum(values.size for _, values in parts)
    true, held = _scaled(pair, scales), _scaled(LowRank(rounded[0], rounded[1]), scales)
    right = sqnr_db(_power(true), _difference(true, held))
    return SlotFit(
        path=slot.path,
        rank=pair.rank,
        slot_rank=slot.adapter_rank,
        energy=1.0,
        share=0.0,
        product_db=right,
        clipped=clipped,
        room=(min(room[0], 1e9), min(room[1], 1e9)),
    )


def _scaled(pair: LowRank, scales: Scales | None) -> LowRank:
    """With the scales in B."""
    return pair if scales is None else LowRank(pair.a, pair.b * scales.reshape(1, -1, *[1] * (pair.b.ndim - 2)))


def _flat(pair: LowRank) -> tuple[Matrix, Matrix]:
    a, b = (part.reshape(len(part), -1).astype(np.float64) for part in (pair.a, pair.b))
    return a, b


def _power(pair: LowRank) -> float:
    """`|B A|^2`, never as a matrix `(out, in)`."""
    a, b = _flat(pair)
    return float(((b.T @ b) * (a @ a.T)).sum())


def _difference(pair: LowRank, rounded: LowRank) -> float:
    """`|B^ A^ - B A|^2` as the square of `[B^ - B | B] [A^; A^ - A]`: of the two products themselves it would be lost in rounding."""
    (a, b), (a_hat, b_hat) = _flat(pair), _flat(rounded)
    right, left = np.concatenate([a_hat, a_hat - a]), np.concatenate([b_hat - b, b], axis=1)
    return float(max(0.0, ((left.T @ left) * (right @ right.T)).sum()))


def worst(fits: Iterable[SlotFit]) -> Sequence[SlotFit]:
    """By the product's SQNR, worst first."""
    return sorted(fits, key=lambda slot: slot.product_db)
