"""Defaults that active adapters bring to a run beside their weights: sampler, steps and guidance, and the words that they listen to.

An adapter that brings a sampler has it in every task, before the task's own; where several bring one, the first in order has it. A
guidance is taken likewise. What the caller says goes before all of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from quad.core.errors import CompatibilityError, UsageError, mismatch
from quad.core.manifest import BundleManifest, SamplerSpec, TaskSpec
from quad.core.sampling import AdapterDefaults, SamplerSettings
from quad.runtime.adapters.block_weights import Weight
from quad.runtime.samplers.names import DISTILLED, is_sampler, named_sampler, parse_sampler

DISTILLED_GUIDANCE, MOST_GUIDANCE = 1.0, 10_000.0
Wish = TypeVar("Wish", str, float)


@dataclass(frozen=True)
class Presets:
    """Sampler settings of a bundle, and defaults of its adapters.

    Args:
        adapters: name -> how it is meant to be run; those that say nothing may be absent.
        samplers: see `BundleManifest.samplers`.
        merged: as `adapters`, of those in the bundle's weights; of them the trigger words alone are read.
    """

    adapters: Mapping[str, AdapterDefaults] = field(default_factory=dict)
    samplers: Mapping[str, SamplerSettings] = field(default_factory=dict)
    merged: Mapping[str, AdapterDefaults] = field(default_factory=dict)


def merged_defaults(manifest: BundleManifest) -> dict[str, AdapterDefaults]:
    """Name -> how it is meant to be run, of the adapters in a bundle's weights that say so."""
    return {adapter.name: adapter.defaults for adapter in manifest.merged or () if isinstance(adapter.defaults, AdapterDefaults)}


def joint_defaults(
    weights: Mapping[str, Weight], presets: Presets, caller: AdapterDefaults | None = None
) -> tuple[AdapterDefaults, tuple[str, ...]]:
    """Sampler and guidance that the caller or the active adapters ask for, and a note for each wish of an adapter that is taken, or not.

    Args:
        weights: adapter name -> weight, in the caller's order; those of weight 0 want nothing.
        caller: what goes before all adapters.

    Raises:
        CompatibilityError: an adapter brings a sampler that this runtime has not.
    """
    caller = caller or AdapterDefaults()
    wishes = {name: presets.adapters[name] for name, weight in weights.items() if weight and name in presets.adapters}
    notes: list[str] = []
    joint = AdapterDefaults(
        sampler=_first(caller.sampler, {name: wish.sampler for name, wish in wishes.items()}, "sampler", notes),
        guidance=_first(caller.guidance, {name: wish.guidance for name, wish in wishes.items()}, "guidance", notes),
    )
    return joint, tuple(notes)


def _first(caller: Wish | None, wishes: Mapping[str, Wish | None], what: str, notes: list[str]) -> Wish | None:
    stated = [(name, wish) for name, wish in wishes.items() if wish is not None]
    if caller is not None or not stated:
        return caller
    first, chosen = stated[0]
    if isinstance(chosen, str) and not is_sampler(chosen):
        way = "name another sampler, or update quad"
        raise CompatibilityError(mismatch(f"adapter {first!r}", "a sampler that this version has", repr(chosen), way))
    notes.append(f"{what} {_shown(chosen)}: adapter {first!r} brings it")
    for name, wish in stated[1:]:
        if wish != chosen:
            notes.append(f"adapter {name!r} is meant for {what} {_shown(wish)}, which was not used: {first!r} comes first")
    return chosen


def _shown(wish: str | float) -> str:
    return wish if isinstance(wish, str) else f"{wish:g}"


def with_defaults(spec: TaskSpec, defaults: AdapterDefaults, samplers: Mapping[str, SamplerSettings]) -> TaskSpec:
    """A task with another sampler and guidance; a sampler whose guidance is distilled has 1 where none is said.

    Args:
        samplers: see `BundleManifest.samplers`.

    Raises:
        UsageError: no sampler has that name.
    """
    changes: dict[str, object] = {}
    if defaults.sampler is not None:
        sampler = named_sampler(defaults.sampler, spec.sampler, samplers)
        changes["sampler"] = sampler
        if sampler.kind in DISTILLED and spec.sampler.kind not in DISTILLED:
            changes["guidance"] = DISTILLED_GUIDANCE
    if defaults.guidance is not None:
        changes["guidance"] = defaults.guidance
    return msgspec.structs.replace(spec, **changes)


def check_defaults(option: str, defaults: AdapterDefaults) -> None:
    """Refuse what no run could take.

    Raises:
        UsageError: an unknown sampler, or a guidance out of range.
    """
    if defaults.sampler is not None:
        parse_sampler(defaults.sampler)
    if defaults.guidance is not None:
        if not math.isfinite(defaults.guidance):
            raise UsageError(mismatch(option, "a finite guidance", defaults.guidance, "choose another"))
        check_guidance(f"{option}, guidance", defaults.guidance)


def check_guidance(name: str, scale: float) -> None:
    """Refuse a guidance that leaves nothing of a picture, or of its numbers.

    Raises:
        UsageError: it is beyond `MOST_GUIDANCE` either way.
    """
    if abs(scale) > MOST_GUIDANCE:
        expected = f"a number from -{MOST_GUIDANCE:g} to {MOST_GUIDANCE:g}"
        raise UsageError(mismatch(name, expected, f"{scale:g}", "choose another, most models want 1 to 15"))


def reachable_strength(spec: TaskSpec) -> TaskSpec:
    """The task with a strength that leaves its sampler one step at least, as a build gives it for the sampler of its own."""
    if spec.strength is msgspec.UNSET or int(spec.sampler.steps * spec.strength) >= 1:
        return spec
    return msgspec.structs.replace(spec, strength=1.0 / spec.sampler.steps)


def sampler_text(sampler: SamplerSpec) -> str:
    """A sampler as it is shown, which is how a user would write it."""
    karras = sampler.settings is not msgspec.UNSET and sampler.settings.sigmas == "karras"
    return f"{sampler.kind}{'-karras' if karras else ''}:{sampler.steps}"


def trigger_notes(weights: Mapping[str, Weight], presets: Presets, prompt: str) -> tuple[str, ...]:
    """A line for each adapter, active or in the weights, none of whose trigger words the prompt has."""
    notes = []
    active = {name: presets.adapters[name] for name, weight in weights.items() if weight and name in presets.adapters}
    for name, defaults in {**presets.merged, **active}.items():
        words = defaults.trigger_words
        phrases = [phrase.strip().lower() for phrase in (words or "").split(",") if phrase.strip()]
        if phrases and not any(phrase in prompt.lower() for phrase in phrases):
            notes.append(f"adapter {name!r} listens to {words!r}, of which the prompt has nothing")
    return tuple(notes)
