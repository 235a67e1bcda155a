"""A profile of several groups of adapters: activation ranges of each, and what an adapter loses in its group.

Source: docs/method.md section 4.

A group's ranges are chosen as those of one profile for all are, from what its members and the base bring. Weights and slots keep one
encoding, and so does `lora_mid` at 16 bits, where bits are plenty: an adapter's integers then mean the same in every group's graph. At 8
bits the first group, which runs its own members alone, has `lora_mid` of its own; the others, which sums with adapters of narrower groups
run in, have that of all. The sites that have 8 bits are the same in all graphs, and chosen for the largest group, as if there were no
other.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

import msgspec
import numpy as np
from torch import Tensor, nn

from quad.core.component_call import BASE_SOURCE
from quad.core.decibels import sqnr_db
from quad.core.encoding import Encoding
from quad.core.profile import GroupRanges, Profile
from quad.core.slots import UNET, SlotTable
from quad.core.tensor_names import CONSTANT_ROLES, Role, role_of
from quad.lora.fit.integers import balanced_inputs, dequantize_adapter, quantize_adapter
from quad.lora.read import FloatAdapter
from quad.quantize.correct.simulate import simulated
from quad.quantize.encodings.rules import rule_for
from quad.quantize.observe.batched_calls import batched_forward
from quad.quantize.observe.observers import SiteStatistics, Statistics
from quad.quantize.observe.probes import Probes, teacher_outputs
from quad.quantize.profile.anchor import AUTO, UNIFIED, AnchorChoice, choose
from quad.quantize.profile.groups import Group, Grouping, GroupLimits, choose_groups
from quad.quantize.profile.pooled_profile import UnifyOptions, site_encoding
from quad.quantize.profile.sensitivity import Sensitivity
from quad.quantize.profile.shared_ranges import AnchoredProfile, choose_ranges


@dataclass(frozen=True, kw_only=True)
class RangeChooser:
    """Activation ranges for any group of adapters.

    Args:
        pooled: of `unify` over all adapters, with the same options.
        anchor: as it was asked for; a group without that adapter chooses for itself.
    """

    pooled: Profile
    statistics: Statistics
    table: SlotTable
    sensitivity: Sensitivity
    options: UnifyOptions
    anchor: str = AUTO

    def choice(self, members: Group) -> AnchorChoice:
        """The adapters whose ranges a group takes."""
        scores = {name: score for name, score in self.sensitivity.scores.items() if name in members}
        asked = self.anchor if self.anchor in (AUTO, UNIFIED, *scores) else AUTO
        return choose(Sensitivity(scores, None), asked)

    def ranges(self, members: Group) -> AnchoredProfile:
        """The profile of a group; of all adapters together it is that of a build with one group."""
        if self.sensitivity.scores.keys() <= set(members):
            return choose_ranges(self.pooled, self.statistics, self.table, self.choice(members), self.options)
        statistics = of_sources(self.statistics, {*members, BASE_SOURCE})
        pooled = msgspec.structs.replace(self.pooled, encodings={**self.pooled.encodings, UNET: self._pooled(statistics)})
        return choose_ranges(pooled, statistics, self.table, self.choice(members), self.options)

    def _pooled(self, statistics: Statistics) -> dict[str, Encoding]:
        """The U-Net's encodings, of its activations from these statistics."""
        encodings = dict(self.pooled.component(UNET))
        for name in statistics.sites[UNET]:
            rule = rule_for(UNET, name, self.options.rules)
            if rule is None or name not in encodings or role_of(name) in CONSTANT_ROLES:
                continue
            density = statistics.density(UNET, name)
            # A x is zero in a slot that no member has, and another adapter may come to have it.
            if role_of(name) is Role.LORA_MID and (rule.bits >= 16 or density.low == density.high == 0.0):
                continue
            encodings[name] = site_encoding(UNET, name, density, self.options) or encodings[name]
        return encodings


def of_sources(statistics: Statistics, sources: Collection[str]) -> Statistics:
    """Of the U-Net those of some sources; a site that none of them reached keeps all."""

    def own(by_source: dict[str, SiteStatistics]) -> dict[str, SiteStatistics]:
        return {name: seen for name, seen in by_source.items() if name in sources} or by_source

    return Statistics({**statistics.sites, UNET: {name: own(by_source) for name, by_source in statistics.sites[UNET].items()}})


@final
class LossMeter:
    """The loss of adapters in groups, on calls of full-precision runs; each group is measured once."""

    def __init__(self, network: nn.Module, adapters: Sequence[FloatAdapter], *, probes: Probes, chooser: RangeChooser) -> None:
        """Args:
        network: float slotted U-Net with Sites.
        probes: of every adapter, and of the base where it counts.
        """
        self._network, self._table, self._probes, self._chooser = network, chooser.table, probes, chooser
        self._adapters = {adapter.name: adapter for adapter in adapters}
        self._true: dict[str, list[Tensor]] = {}
        self._output_db: dict[Group, dict[str, float]] = {}

    def losses(self, members: Group) -> dict[str, float]:
        """How many dB each member's output is farther from full precision than in a group of its own.

        Raises:
            InputError: a weight is NaN or infinite.
        """
        shared = self._measured(members)
        return {name: self._measured((name,))[name] - shared[name] for name in members}

    def _measured(self, members: Group) -> dict[str, float]:
        """SQNR of the U-Net's output of each member, dB."""
        if members not in self._output_db:
            profile = self._chooser.ranges(members).profile
            for name in members:
                if name not in self._true:
                    slots = balanced_inputs(self._adapters.get(name), self._table)
                    self._true[name] = teacher_outputs(self._network, self._probes[name], slots)
            with simulated(self._network, profile, UNET):
                self._output_db[members] = {name: self._output(name, profile) for name in members}
        return self._output_db[members]

    def _output(self, name: str, profile: Profile) -> float:
        calls, adapter = self._probes[name], self._adapters.get(name)
        slots = {} if adapter is None else dequantize_adapter(quantize_adapter(adapter, self._table, profile), self._table, profile)
        outputs = batched_forward(self._network, [probe.tensors() for probe in calls], slots)
        signal = noise = 0.0
        for true, actual in zip(self._true[name], outputs, strict=True):
            signal += float(true.double().square().sum())
            noise += float((actual.double() - true.double()).square().sum())
        return sqnr_db(signal, noise)


@dataclass(frozen=True, kw_only=True)
class GroupedProfile:
    """A profile of all groups, those of wider ranges behind; the base runs in the first.

    Args:
        grouping: with the groups in that order.
        choices: whose ranges hold in each.
        first: how the first group's ranges came to be.
    """

    profile: Profile
    grouping: Grouping
    choices: tuple[AnchorChoice, ...]
    first: AnchoredProfile
    group_of: Mapping[str, int] = field(default_factory=dict)


def grouped_profile(chooser: RangeChooser, grouping: Grouping) -> GroupedProfile:
    """One profile with the ranges of every group of a grouping."""
    chosen = {group: chooser.ranges(group) for group in grouping.groups}
    order = sorted(grouping.groups, key=lambda group: (BASE_SOURCE not in group, _width(chosen[group].profile)))
    first, *others = (chosen[group] for group in order)
    profile = first.profile
    if others:
        further = (_with_mid_of_all(other.profile, chooser.pooled) for other in others)
        profile = msgspec.structs.replace(profile, groups=tuple(_differing(first.profile, other) for other in further))
    return GroupedProfile(
        profile=profile,
        grouping=Grouping(groups=tuple(order), losses=grouping.losses, together=grouping.together, pairs=grouping.pairs),
        choices=tuple(chooser.choice(group) for group in order),
        first=first,
        group_of={name: number for number, group in enumerate(order) for name in group if name != BASE_SOURCE},
    )


def _with_mid_of_all(profile: Profile, pooled: Profile) -> Profile:
    mids = {name: encoding for name, encoding in pooled.component(UNET).items() if role_of(name) is Role.LORA_MID}
    return msgspec.structs.replace(profile, encodings={**profile.encodings, UNET: {**profile.component(UNET), **mids}})


def _differing(first: Profile, other: Profile) -> GroupRanges:
    known = first.component(UNET)
    encodings = {name: encoding for name, encoding in other.component(UNET).items() if known.get(name) != encoding}
    return GroupRanges(encodings={UNET: encodings} if encodings else {}, mode=other.mode, anchor=other.anchor)


def _width(profile: Profile) -> float:
    """Mean of the logarithms of how far the U-Net's activation encodings reach."""
    encodings = [encoding for name, encoding in profile.component(UNET).items() if role_of(name) not in CONSTANT_ROLES]
    return float(np.mean([np.log2(encoding.scale[0]) + encoding.bits for encoding in encodings]))


def measured_grouping(meter: LossMeter, adapters: Sequence[FloatAdapter], probes: Probes, limits: GroupLimits) -> Grouping:
    """The fewest groups within the limits; the base is a member where it has probes."""
    members = [*(adapter.name for adapter in adapters), *([BASE_SOURCE] if probes.get(BASE_SOURCE) else [])]
    return choose_groups(members, limits, meter.losses)
