"""A new adapter tried on the bundle's stored calls, by the bundle's own graph and engine: no base model, no torch.

Without the base nobody knows what the adapter should do. What can be known: the answer is finite, it changes something, and no activation
leaves the range that was frozen for others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from quad.admit.sites import SiteUse
from quad.admit.slots import UnfitError, listed
from quad.admit.unet_forms import UnetForms
from quad.core.component_call import Inputs
from quad.core.decibels import EffectEnergy, relative_error
from quad.core.errors import CompatibilityError, mismatch
from quad.core.manifest import Golden
from quad.runtime.adapters.buffers import Buffers, ZeroBuffers
from quad.runtime.adapters.store import AdapterStore
from quad.runtime.bundle import Bundle
from quad.runtime.engines.engine import Session
from quad.runtime.golden_outputs import block_means, distance, golden_of, read_probes

# Share of one activation's energy that its range may cut off beyond what it does with the base and the bundle's own adapters.
# Toyland with 16-bit activations: none of six adapters loses anything; one made half as strong again loses 0.0024, and at twice its
# strength slots refuse it.
MOST_LOST = 0.01
Array = NDArray[Any]
Uses = Mapping[str, SiteUse]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """The effect of a new adapter on the stored calls.

    Args:
        effect: RMS of what it changes in the output over the RMS of that output, the largest of all calls.
        golden_effect, others: the same on the golden output's call alone, of it and of the bundle's own adapters.
        unread: why activations could not be looked into; empty where they were.
        sites: activations, with the new adapter.
        before: the same of the base; where the new adapter loses much, the most of the base and of those of the bundle's own that run in
            this graph; where it loses nothing, nobody was asked.
        golden: its golden output, on the call where it differs most from the others.
        loudest: the number of the stored call whose output it changes most.
    """

    effect: float
    golden_effect: float
    others: Mapping[str, float]
    unread: str
    sites: Uses
    before: Uses
    golden: Golden
    loudest: int

    @property
    def lossy(self) -> dict[str, SiteUse]:
        """Activations of which more is cut off than `before`, worst first."""
        more = {name: use for name, use in self.sites.items() if use.lost > self.before[name].lost}
        return dict(sorted(more.items(), key=lambda item: -item[1].lost))

    @property
    def clipped(self) -> dict[str, SiteUse]:
        """Those of which too much is."""
        return {name: use for name, use in self.lossy.items() if use.lost - self.before[name].lost > MOST_LOST}

    def to_json(self) -> dict[str, Any]:
        """`effect`, `golden_effect`, `others`, how many `sites` were looked at, and those that are `lossy`."""
        shown = {name: {"lost": use.lost, "reach": min(use.reach, 1e9)} for name, use in self.lossy.items()}
        effects = {"effect": self.effect, "golden_effect": self.golden_effect, "others": dict(self.others)}
        return {**effects, "sites": len(self.sites), "lossy": shown}


@final
class StoredCalls:
    """The bundle's stored calls, by its own graph: with the base, the bundle's adapters and one form of the new adapter after the other."""

    def __init__(self, bundle: Bundle, load_unet: Callable[[], Session], *, more: Sequence[Inputs] = (), at_once: int = 1) -> None:
        """Args:
            load_unet: loads the bundle's U-Net.
            more: the adapter's own calls, whose activations are looked at too.
            at_once: how many calls run at once; the answers do not depend on it.

        Raises:
            CompatibilityError: the bundle has no stored calls.
        """
        self._forms, self._more = UnetForms(bundle, load_unet, at_once), more
        self._group = bundle.group
        self._probes, self._store = read_probes(bundle), AdapterStore(bundle, budget_bytes=0)  # one adapter at a time
        self._latest: tuple[Buffers, Uses] | None = None
        self._base_uses: dict[int, Uses] = {}
        self._bundled_answers: dict[int, dict[str, Array]] = {}

    def run(self, buffers: Buffers) -> Trial:
        """Try the new adapter.

        Args:
            buffers: padded.

        Raises:
            CompatibilityError: its answer holds NaN or Inf.
        """
        sites, before = self._sites(buffers)
        unread = self._forms.unread
        zero, adapted = self._zero, self._forms.outputs([(lambda: buffers, call) for call in self._probes])
        if not all(np.isfinite(output).all() for output in adapted):
            where, hint = "U-Net with the new adapter, stored calls", "give another checkpoint"
            raise CompatibilityError(mismatch(where, "answers of finite numbers", "NaN or Inf", hint))
        probe, others = _most_distinct(adapted, zero, self._bundled)
        return Trial(
            effect=max(relative_error(answer, base) for answer, base in zip(adapted, zero, strict=True)),
            golden_effect=relative_error(adapted[probe], zero[probe]),
            others={name: relative_error(answer, zero[probe]) for name, answer in others.items()},
            unread=unread,
            sites=sites,
            before=before,
            golden=golden_of(adapted[probe], probe),
            loudest=max(range(len(adapted)), key=lambda index: relative_error(adapted[index], zero[index])),
        )

    def uses(self, buffers: Buffers, probe: int) -> Uses:
        """How activations use their ranges on one stored call."""
        return self._forms.uses(buffers, [self._probes[probe]])

    def effects(self, adapters: Mapping[float, Buffers], probe: int) -> dict[float, EffectEnergy]:
        """How right the effects of several adapters come out on one stored call: by the engine, against activations left as floats.

        What rounding and ranges take from them is in it; what the weights' own rounding does is not. Empty where this cannot be measured.
        """
        call = self._probes[probe]
        asked = [(lambda each=each: each, call) for each in (self.zeros, *adapters.values())]
        if (true := self._forms.unrounded(asked)) is None:
            return {}
        run = self._forms.outputs(asked)
        return {
            key: EffectEnergy.of(exact - true[0], rounded - run[0]) for key, exact, rounded in zip(adapters, true[1:], run[1:], strict=True)
        }

    def base_uses(self, probe: int) -> Uses:
        """The same of the base."""
        if probe not in self._base_uses:
            self._base_uses[probe] = self.uses(self.zeros, probe)
        return self._base_uses[probe]

    @property
    def zeros(self) -> ZeroBuffers:
        """The base."""
        return self._store.zeros

    @cached_property
    def _zero(self) -> list[Array]:
        return self._forms.outputs([(lambda: self._store.zeros, call) for call in self._probes])

    def _bundled(self, probe: int) -> dict[str, Array]:
        """The answers of the bundle's own adapters to one stored call."""
        if probe not in self._bundled_answers:
            names, call = self._store.names, self._probes[probe]
            outputs = self._forms.outputs([(partial(self._store.buffers, name), call) for name in names]) if names else []
            self._bundled_answers[probe] = dict(zip(names, outputs, strict=True))
        return self._bundled_answers[probe]

    def _sites(self, buffers: Buffers) -> tuple[Uses, Uses]:
        """`Trial.sites` and `Trial.before`; who else uses a range is asked where the new adapter leaves one alone."""
        new = self.all_uses(buffers)
        most = max((use.lost for use in new.values()), default=0.0)
        if most == 0.0:
            return new, new
        return new, self._others_use if most > MOST_LOST else self._base_use

    def all_uses(self, buffers: Buffers) -> Uses:
        """How activations use their ranges over all calls; the latest answer is remembered."""
        if self._latest is None or self._latest[0] is not buffers:
            self._latest = (buffers, self._forms.uses(buffers, [*self._probes, *self._more]))
        return self._latest[1]

    @cached_property
    def _base_use(self) -> Uses:
        return self.all_uses(self._store.zeros)

    @cached_property
    def _others_use(self) -> Uses:
        most = self._base_use
        # Adapters of a wider group never run in this graph: what they lose here excuses nobody.
        for name in (name for name in self._store.names if self._store.manifest(name).group_number <= self._group):
            bundled = self.all_uses(self._store.buffers(name))
            most = {site: max(use, bundled[site], key=lambda either: either.lost) for site, use in most.items()}
        return most


def refuse_unlike(name: str, trial: Trial, bundle: str, tried: str = "") -> None:
    """Raise where the adapter does not behave like one of this bundle.

    Args:
        tried: what else was tried, before the way out.

    Raises:
        CompatibilityError: no effect, or activations that are cut off, by name.
    """
    where = f"adapter {name!r} on the stored calls of bundle {bundle!r}"
    if trial.effect == 0.0:
        raise CompatibilityError(mismatch(where, "an effect on the U-Net's output", "none", "is it trained, and for this base?"))
    clipped = {site: f"{use.lost:.1%} of its energy, up to {use.reach:.2f} of the range" for site, use in trial.clipped.items()}
    if clipped:
        expected = f"activations that lose at most {MOST_LOST:.0%} of their energy more than with others to their frozen ranges"
        losing = f"{len(clipped)} that lose more: {listed(clipped)}"
        raise UnfitError(mismatch(where, expected, losing, f"{tried}build the bundle again with this adapter"), clipped)


def _rms(x: Array) -> float:
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))


def _most_distinct(
    adapted: Sequence[Array], zero: Sequence[Array], bundled: Callable[[int], dict[str, Array]]
) -> tuple[int, dict[str, Array]]:
    """The number of the call on which the new adapter's block means are farthest from the nearest of the others', in their own RMS.

    The others are the base and the bundle's own adapters. These are asked call by call, the one farthest from the base first: no call is
    farther from all others than from the base, so the rest are not run once one is farther than they can be.

    Args:
        bundled: runs the bundle's own adapters on a call.

    Returns:
        The number, and the answers of the bundle's own adapters there.
    """
    means = [block_means(output) for output in adapted]

    def gap(index: int, outputs: Iterable[Array]) -> float:
        candidate = Golden(index, tuple(map(float, means[index])), 0.0)
        return min(distance(candidate, block_means(output)) for output in outputs) / max(_rms(means[index]), 1e-12)

    bounds = [gap(index, [output]) for index, output in enumerate(zero)]
    best, answers = (-1.0, 0), dict[str, Array]()
    for index in sorted(range(len(adapted)), key=lambda each: (-bounds[each], each)):
        if (bounds[index], -index) < best:
            break
        others = bundled(index)
        if (candidate := (gap(index, [zero[index], *others.values()]), -index)) > best:
            best, answers = candidate, others
    return -best[1], answers
