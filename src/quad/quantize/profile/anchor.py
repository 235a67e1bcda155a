"""The choice of the adapter whose ranges become everybody's: the anchor, or none where several are equally sensitive.

Source: QUAD; docs/method.md section 4.

    sensitivity --choose--> AnchorChoice --anchored(pooled profile)--> Profile

Beyond the paper, `cross_table` asks whether the most sensitive adapter really is the best anchor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import numpy as np
from torch import nn

from quad.core.errors import UsageError, mismatch
from quad.core.profile import Profile
from quad.core.slots import SlotTable
from quad.core.tensor_names import lora_mid_name
from quad.lora.read import FloatAdapter
from quad.quantize.observe.probes import Probe
from quad.quantize.profile.sensitivity import Sensitivity, bootstrap_means, divergences, float_outputs, simulated_outputs

AUTO, UNIFIED = "auto", "unified"
EQUAL = 0.10  # spread over mean, under which adapters count as equally sensitive
SERVES = 2.0  # a shared profile that does more than this times the damage of an adapter's own one does not serve it
_TINY = 1e-30


@dataclass(frozen=True, kw_only=True)
class AnchorChoice:
    """The adapters whose ranges a profile takes.

    Args:
        anchor: the adapter, None in mode `unified`.
        sources: the adapters whose statistics are pooled; None for all that were observed, the base among them.
        reason: one sentence for people.
        spread: upper 95 % bound of (max - min) / mean of the sensitivities, None where it was not asked.
    """

    mode: Literal["anchor", "unified"]
    anchor: str | None
    sources: tuple[str, ...] | None
    reason: str
    spread: float | None = None

    def to_json(self) -> dict[str, Any]:
        """`mode`, `anchor`, `reason`, `spread` and the names that were unified."""
        unified = None if self.mode == "anchor" or self.sources is None else list(self.sources)
        return {"mode": self.mode, "anchor": self.anchor, "reason": self.reason, "spread": self.spread, "unified": unified}


def choose(sensitivity: Sensitivity, request: str = AUTO) -> AnchorChoice:
    """The anchor, or Unified-LoRA where an equivalence test says that adapters are equally sensitive.

    Args:
        request: `auto`, `unified`, or an adapter's name.

    Raises:
        UsageError: no adapter of that name.
    """
    check_request(request, tuple(sensitivity.scores))
    if request == UNIFIED:
        return AnchorChoice(mode="unified", anchor=None, sources=None, reason="unified was asked for")
    if request != AUTO:
        return AnchorChoice(mode="anchor", anchor=request, sources=(request,), reason=f"{request} was asked for")
    return _automatic(sensitivity)


def check_request(request: str, names: Sequence[str]) -> None:
    """Refuse an anchor that is none of the adapters.

    Raises:
        UsageError: no adapter of that name.
    """
    if request not in (AUTO, UNIFIED, *names):
        raise UsageError(mismatch("--anchor", ", ".join((AUTO, UNIFIED, *names)), repr(request), "choose one of these"))


def _automatic(sensitivity: Sensitivity) -> AnchorChoice:
    ranking = sensitivity.ranking
    if not ranking:
        return AnchorChoice(mode="unified", anchor=None, sources=None, reason="there is no adapter")
    first = ranking[0]
    if len(ranking) == 1:
        return AnchorChoice(mode="anchor", anchor=first, sources=(first,), reason=f"{first} is the only adapter")
    spread = spread_bound(sensitivity, ranking)
    if spread < EQUAL:
        why = f"all {len(ranking)} adapters are equally sensitive: spread at most {spread:.0%} of the mean (95 % bound), under {EQUAL:.0%}"
        return AnchorChoice(mode="unified", anchor=None, sources=None, reason=why, spread=spread)
    top = spread_bound(sensitivity, ranking[:2])
    if top < EQUAL:
        why = f"{first} and {ranking[1]} are equally the most sensitive: spread at most {top:.0%} of their mean (95 % bound)"
        return AnchorChoice(mode="unified", anchor=None, sources=ranking[:2], reason=why, spread=spread)
    ratio = sensitivity.scores[first].qss / max(sensitivity.scores[ranking[1]].qss, _TINY)
    return AnchorChoice(
        mode="anchor",
        anchor=first,
        sources=(first,),
        reason=f"{first} is the most sensitive, {ratio:.2f} times {ranking[1]}",
        spread=spread,
    )


def spread_bound(sensitivity: Sensitivity, names: Sequence[str]) -> float:
    """Upper 95 % paired-bootstrap bound of `(max - min) / mean` over these adapters' sensitivities.

    An equivalence test: to be small the bound needs data, while "no significant difference" needs only too little of it.
    """
    means = np.stack(list(bootstrap_means({name: sensitivity.scores[name].calls for name in names}).values()))
    spread = (means.max(axis=0) - means.min(axis=0)) / np.maximum(means.mean(axis=0), _TINY)
    return float(np.quantile(spread, 0.95))


@dataclass(frozen=True)
class CrossTable:
    """Adapter i under the encodings of j.

    Args:
        names: the adapters; rows and columns in this order.
        scores: paired-Gaussian QSS, row i column j.
    """

    names: tuple[str, ...]
    scores: tuple[tuple[float, ...], ...]

    @property
    def best(self) -> str:
        """`argmin_j max_i`: whose encodings leave the worst-served adapter best off."""
        return self.names[int(np.argmin(np.max(self.scores, axis=0)))]

    @property
    def one_serves_all(self) -> bool:
        """Whether some column does no adapter more than twice the damage that its own encodings do."""
        scores = np.array(self.scores)
        return bool((scores / np.maximum(np.diag(scores), _TINY)[:, None]).max(axis=0).min() <= SERVES)

    def to_json(self) -> dict[str, Any]:
        """`names`, `scores`, `best`, `one_serves_all`."""
        return {
            "names": list(self.names),
            "scores": [list(row) for row in self.scores],
            "best": self.best,
            "one_serves_all": self.one_serves_all,
        }


def cross_table(
    network: nn.Module,
    table: SlotTable,
    adapters: Sequence[FloatAdapter],
    profiles: Mapping[str, Profile],
    probes: Mapping[str, Sequence[Probe]],
) -> CrossTable:
    """Score every adapter on its own probes under every adapter's activation encodings; N * N passes over the probes.

    Slots and `lora_mid` keep the encodings of the adapter itself: rescaling brings A, B and A x to any range for nothing
    (docs/method.md section 3), so the table is about what cannot be rescaled.

    Args:
        profiles: adapter name -> its own profile (`own_profile`).

    Raises:
        InputError: an output is NaN or infinite.
    """
    rows: list[tuple[float, ...]] = []
    for adapter in adapters:
        calls = probes[adapter.name]
        true = float_outputs(network, table, adapter, calls)
        row = []
        for other in adapters:
            profile = _with_slots(profiles[other.name], profiles[adapter.name], table)
            row.append(float(np.mean(divergences(true, simulated_outputs(network, table, adapter, calls, profile), calls))))
        rows.append(tuple(row))
    return CrossTable(tuple(adapter.name for adapter in adapters), tuple(rows))


def _with_slots(profile: Profile, slots_of: Profile, table: SlotTable) -> Profile:
    encodings = {component: dict(named) for component, named in profile.encodings.items()}
    for slot in table.slots:
        for name in {slot.a_name, slot.b_name, lora_mid_name(slot.path)} & slots_of.component(slot.component).keys():
            encodings[slot.component][name] = slots_of.encodings[slot.component][name]
    return msgspec.structs.replace(profile, encodings=encodings)
