"""A new adapter tried on the bundle's stored calls, by the bundle's own graph and engine: no base model, no torch.

Without the base nobody knows what the adapter should do. What can be known: the answer is finite, it changes something, and no activation
leaves the range that was frozen for others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from quad.admit.sites import ObservedGraph, SiteUse
from quad.admit.slots import UnfitError, listed
from quad.core.component_call import Inputs
from quad.core.decibels import relative_error
from quad.core.errors import CompatibilityError, mismatch
from quad.core.manifest import Golden
from quad.core.slots import UNET
from quad.runtime.adapters.buffers import Buffers, ZeroBuffers
from quad.runtime.adapters.store import AdapterStore
from quad.runtime.bundle import Bundle
from quad.runtime.engines.engine import Session
from quad.runtime.golden_outputs import block_means, distance, golden, read_probes, unet_buffers

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
        others: the same of the bundle's own adapters.
        unread: why activations could not be looked into; empty where they were.
        sites: activations, with the new adapter.
        before: the same of the base; where the new adapter loses much, the most of the base and of all of the bundle's own; where it loses
            nothing, nobody was asked.
        golden: its golden output, on the call where it differs most from the others.
        loudest: the number of the stored call whose output it changes most.
    """

    effect: float
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
        """`effect`, `others`, how many `sites` were looked at, and those that are `lossy`."""
        shown = {name: {"lost": use.lost, "reach": min(use.reach, 1e9)} for name, use in self.lossy.items()}
        return {"effect": self.effect, "others": dict(self.others), "sites": len(self.sites), "lossy": shown}


@final
class StoredCalls:
    """The bundle's stored calls, by its own graph: with the base, the bundle's adapters and one form of the new adapter after the other."""

    def __init__(self, bundle: Bundle, session: Session, more: Sequence[Inputs] = ()) -> None:
        """Args:
            session: the bundle's U-Net; its slot inputs are bound anew.
            more: the adapter's own calls, whose activations are looked at too.

        Raises:
            CompatibilityError: the bundle has no stored calls.
        """
        self._bundle, self._session, self._more = bundle, session, more
        self._probes, self._store = read_probes(bundle), AdapterStore(bundle, budget_bytes=0)  # one adapter at a time
        self._base_uses: dict[int, Uses] = {}

    def run(self, buffers: Buffers) -> Trial:
        """Try the new adapter.

        Args:
            buffers: padded.

        Raises:
            CompatibilityError: its answer holds NaN or Inf.
        """
        zero, bundled, adapted = self._zero, self._bundled, self._outputs(buffers)
        if not all(np.isfinite(output).all() for output in adapted):
            where, hint = "U-Net with the new adapter, stored calls", "give another checkpoint"
            raise CompatibilityError(mismatch(where, "answers of finite numbers", "NaN or Inf", hint))
        sites, before = self._sites(buffers)
        probe = _most_distinct(adapted, [zero, *bundled.values()])
        return Trial(
            effect=_effect(adapted, zero),
            others={name: _effect(answers, zero) for name, answers in bundled.items()},
            unread=self._graph.unread,
            sites=sites,
            before=before,
            golden=golden("golden output", self._session, self._probes[probe], probe),
            loudest=max(range(len(adapted)), key=lambda index: relative_error(adapted[index], zero[index])),
        )

    def uses(self, buffers: Buffers, probe: int) -> Uses:
        """How activations use their ranges on one stored call."""
        return self._graph.uses([self._probes[probe]], unet_buffers(self._bundle, buffers))

    def base_uses(self, probe: int) -> Uses:
        """The same of the base."""
        if probe not in self._base_uses:
            self._base_uses[probe] = self.uses(self.zeros, probe)
        return self._base_uses[probe]

    @property
    def zeros(self) -> ZeroBuffers:
        """The base."""
        return self._store.zeros

    def _outputs(self, buffers: Buffers) -> list[Array]:
        self._session.bind(unet_buffers(self._bundle, buffers))
        return [self._session.run(call) for call in self._probes]

    @cached_property
    def _zero(self) -> list[Array]:
        return self._outputs(self._store.zeros)

    @cached_property
    def _bundled(self) -> dict[str, list[Array]]:
        return {name: self._outputs(self._store.buffers(name)) for name in self._store.names}

    @cached_property
    def _graph(self) -> ObservedGraph:
        with self._bundle.graph_to_load(UNET) as file:
            return ObservedGraph(file)

    def _sites(self, buffers: Buffers) -> tuple[Uses, Uses]:
        """`Trial.sites` and `Trial.before`; who else uses a range is asked where the new adapter leaves one alone."""
        new = self._all_uses(buffers)
        most = max((use.lost for use in new.values()), default=0.0)
        if most == 0.0:
            return new, new
        return new, self._others_use if most > MOST_LOST else self._base_use

    def _all_uses(self, buffers: Buffers) -> Uses:
        return self._graph.uses([*self._probes, *self._more], unet_buffers(self._bundle, buffers))

    @cached_property
    def _base_use(self) -> Uses:
        return self._all_uses(self._store.zeros)

    @cached_property
    def _others_use(self) -> Uses:
        most = self._base_use
        for name in self._store.names:
            bundled = self._all_uses(self._store.buffers(name))
            most = {site: max(use, bundled[site], key=lambda either: either.lost) for site, use in most.items()}
        return most


def refuse_unlike(name: str, trial: Trial, bundle: str) -> None:
    """Raise where the adapter does not behave like one of this bundle.

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
        raise UnfitError(mismatch(where, expected, losing, "build the bundle again with this adapter"), clipped)


def _effect(outputs: Sequence[Array], zero: Sequence[Array]) -> float:
    return max(relative_error(a, b) for a, b in zip(outputs, zero, strict=True))


def _rms(x: Array) -> float:
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))


def _most_distinct(adapted: Sequence[Array], bundled: Sequence[Sequence[Array]]) -> int:
    """The number of the call on which the new adapter's block means are farthest from the nearest of the others', in their own RMS."""

    def gap(index: int) -> float:
        means = block_means(adapted[index])
        candidate = Golden(index, tuple(map(float, means)), 0.0)
        return min(distance(candidate, block_means(outputs[index])) for outputs in bundled) / max(_rms(means), 1e-12)

    return max(range(len(adapted)), key=gap)
