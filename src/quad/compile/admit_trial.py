"""A new adapter tried on the bundle's stored calls, by the bundle's own graph and engine: no base model, no torch.

Without the base nobody knows what the adapter should do. What can be known: the answer is finite, it changes something, the change is of
the size that the bundle's own adapters make, and no activation leaves the range that was frozen for others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quad.compile.admit_sites import SiteUse, has_sites, site_uses
from quad.compile.admit_slots import listed
from quad.core.errors import CompatibilityError, mismatch
from quad.core.manifest import Golden
from quad.core.slots import UNET
from quad.runtime.adapters import AdapterStore
from quad.runtime.buffers import Buffers
from quad.runtime.bundle import Bundle
from quad.runtime.engine import Session
from quad.runtime.golden import Call, block_means, distance, golden, read_probes, unet_buffers

# Toyland: the bundle's five change its U-Net's output by MEASURED of its RMS; a LoRA four times too strong, by MEASURED.
MOST_EFFECT = 4.0
# Share of one activation's values that may be clipped beyond what the base's own are.
MOST_OUTSIDE = 0.01
Array = NDArray[Any]


@dataclass(frozen=True)
class Trial:
    """What a new adapter does to the stored calls.

    Args:
        effect: RMS of what it changes in the output over the RMS of that output, the largest of all calls.
        others: the same of the bundle's own adapters.
        sites: activations, with the new adapter; empty where the graph cannot be looked into.
        before: the same of the base.
        golden: its golden output, on the call where it differs most from the others.
    """

    effect: float
    others: Mapping[str, float]
    sites: Mapping[str, SiteUse]
    before: Mapping[str, SiteUse]
    golden: Golden

    @property
    def outside(self) -> dict[str, SiteUse]:
        """Activations that leave their ranges more than they do with the base, worst first."""
        more = {name: use for name, use in self.sites.items() if use.outside > self.before[name].outside}
        return dict(sorted(more.items(), key=lambda item: -item[1].outside))

    def to_json(self) -> dict[str, Any]:
        """`effect`, `others`, how many `sites` were looked at, and those `outside` of their ranges."""
        shown = {name: {"outside": use.outside, "reach": min(use.reach, 1e9)} for name, use in self.outside.items()}
        return {"effect": self.effect, "others": dict(self.others), "sites": len(self.sites), "outside": shown}


def try_adapter(bundle: Bundle, session: Session, buffers: Buffers, more: Sequence[Call] = ()) -> Trial:
    """Run the stored calls with the base, the new adapter and the bundle's own.

    Args:
        session: the bundle's U-Net; its slot inputs are bound anew.
        buffers: of the new adapter, padded.
        more: the adapter's own calls, whose activations are looked at too.

    Raises:
        CompatibilityError: the bundle has no stored calls, or the new adapter's answer holds NaN or Inf.
    """
    probes, store = read_probes(bundle), AdapterStore(bundle)

    def answers(given: Buffers) -> list[Array]:
        session.bind(unet_buffers(bundle, given))
        return [session.run(call) for call in probes]

    zero = answers(store.zeros)
    others = {name: answers(store.buffers(name)) for name in store.names}
    own = answers(buffers)
    if not all(np.isfinite(output).all() for output in own):
        where, then = "U-Net with the new adapter, stored calls", "give another checkpoint"
        raise CompatibilityError(mismatch(where, "answers of finite numbers", "NaN or Inf", then))
    model, sites = bundle.graph(UNET), {}
    if has_sites(model):
        both = {"base": unet_buffers(bundle, store.zeros), "own": unet_buffers(bundle, buffers)}
        sites = site_uses(model, [*probes, *more], both)
    probe = _telling(own, [zero, *others.values()])
    made = golden("golden output", session, probes[probe], probe)
    effects = {name: _effect(found, zero) for name, found in others.items()}
    return Trial(_effect(own, zero), effects, sites.get("own", {}), sites.get("base", {}), made)


def refuse_unlike(name: str, trial: Trial, bundle: str) -> None:
    """Raise where the adapter does not behave like one of this bundle.

    Raises:
        CompatibilityError: no effect, one far larger than any other's, or activations that are clipped, by name.
    """
    where = f"adapter {name!r} on the stored calls of bundle {bundle!r}"
    largest = max(trial.others.values(), default=0.0)
    if trial.effect == 0.0:
        raise CompatibilityError(mismatch(where, "an effect on the U-Net's output", "none", "is it trained, and for this base?"))
    if largest and trial.effect > MOST_EFFECT * largest:
        found = f"{trial.effect:.2f} of the output, the largest of the others changes {largest:.2f}"
        raise CompatibilityError(mismatch(where, f"an effect up to {MOST_EFFECT:g} times theirs", found, "is it trained for this base?"))
    clipped = {
        site: f"{use.outside:.1%} of its values, up to {use.reach:.2f} of the range"
        for site, use in trial.outside.items()
        if use.outside - trial.before[site].outside > MOST_OUTSIDE
    }
    if clipped:
        expected = f"activations within their frozen ranges but for {MOST_OUTSIDE:.0%}"
        raise CompatibilityError(mismatch(where, expected, f"{len(clipped)} outside: {listed(clipped)}", "build the bundle again with it"))


def _effect(found: Sequence[Array], zero: Sequence[Array]) -> float:
    return max(_rms(a - b) / max(_rms(b), 1e-12) for a, b in zip(found, zero, strict=True))


def _rms(x: Array) -> float:
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))


def _telling(own: Sequence[Array], others: Sequence[Sequence[Array]]) -> int:
    """The number of the call on which the new adapter's block means are farthest from the nearest of the others', in their own RMS."""

    def gap(index: int) -> float:
        means = block_means(own[index])
        said = Golden(index, tuple(map(float, means)), 0.0)
        return min(distance(said, block_means(other[index])) for other in others) / max(_rms(means), 1e-12)

    return max(range(len(own)), key=gap)
