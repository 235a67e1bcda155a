"""Ranges of several groups of adapters: each group's are those that its members bring, and integers mean the same in all."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from quad.core.component_call import BASE_SOURCE
from quad.core.profile import Profile
from quad.core.slots import UNET
from quad.core.tensor_names import CONSTANT_ROLES, Role, role_of
from quad.lora.fit.integers import integer_slots, quantize_adapter
from quad.model.base.open import Base
from quad.quantize.encodings.rules import with_eight_bit
from quad.quantize.observe.calibrate import CalibrationSample, component_networks
from quad.quantize.observe.observers import SiteStatistics, Statistics
from quad.quantize.observe.probes import Probes, record_probes
from quad.quantize.profile.anchor import UNIFIED, choose
from quad.quantize.profile.grouped_ranges import GroupedProfile, LossMeter, RangeChooser, grouped_profile, measured_grouping
from quad.quantize.profile.groups import Grouping, GroupLimits
from quad.quantize.profile.pooled_profile import UnifyOptions, unify
from quad.quantize.profile.sensitivity import score_adapters
from quad.quantize.profile.shared_ranges import choose_ranges, own_profiles
from tests.quantize.conftest import Tiny

FAINT, LOUD = "faint", "loud"


@pytest.fixture(scope="module")
def probes(base: Base, tiny: Tiny, samples: list[CalibrationSample]) -> Probes:
    return record_probes(base, component_networks(base, tiny.network), tiny.table, tiny.adapters, samples)


def _reaching(seen: SiteStatistics) -> SiteStatistics:
    """Values all over a range eight times as wide."""
    statistics = SiteStatistics()
    low, high = seen.histogram.low, seen.histogram.high
    statistics.add(np.linspace(8 * low, 8 * high, 4096, dtype=np.float32)[:, None])
    return statistics


@pytest.fixture(scope="module")
def chooser(tiny: Tiny, probes: Probes) -> RangeChooser:
    """Every activation but `A x` and softmax at 8 bits; the loud adapter's reach far."""
    names = [name for name in tiny.statistics.sites[UNET] if role_of(name) not in (Role.LORA_MID, Role.PROBABILITY)]
    sites = {name: {**by, LOUD: _reaching(by[LOUD])} for name, by in tiny.statistics.sites[UNET].items()}
    statistics, options, slots = Statistics({UNET: sites}), UnifyOptions(rules=with_eight_bit(names)), integer_slots(tiny.table, 16)
    pooled = unify(statistics, {}, slots, tiny.adapters, options)
    own = own_profiles(pooled, statistics, slots, tiny.adapters, options)
    sensitivity = score_adapters(tiny.network, slots, tiny.adapters, own, probes)
    return RangeChooser(pooled=pooled, statistics=statistics, table=slots, sensitivity=sensitivity, options=options)


@pytest.fixture(scope="module")
def grouped(chooser: RangeChooser) -> GroupedProfile:
    """The loud adapter named first."""
    return grouped_profile(chooser, Grouping(groups=((LOUD,), (FAINT, BASE_SOURCE)), losses={}, together={}, pairs={}))


def test_a_group_of_all_is_one_profile(chooser: RangeChooser) -> None:
    for asked in ("auto", UNIFIED, FAINT):
        some = replace(chooser, anchor=asked)
        expected = choose_ranges(
            some.pooled, some.statistics, some.table, choose(some.sensitivity, asked), some.options
        )  # as a build without groups
        assert some.ranges((FAINT, LOUD, BASE_SOURCE)) == expected
        single = grouped_profile(some, Grouping.single((FAINT, LOUD)))
        assert single.profile == expected.profile
        assert b"groups" not in msgspec.json.encode(single.profile)


def test_a_group_has_the_ranges_that_its_members_alone_would_bring(chooser: RangeChooser, tiny: Tiny) -> None:
    sites = {name: {source: seen for source, seen in by.items() if source != LOUD} for name, by in chooser.statistics.sites[UNET].items()}
    alone = unify(Statistics({UNET: sites}), {}, chooser.table, tiny.adapters, chooser.options)
    faint = replace(chooser, anchor=UNIFIED).ranges((FAINT,)).profile
    for name, encoding in faint.component(UNET).items():
        expected = chooser.pooled if role_of(name) in (*CONSTANT_ROLES, Role.LORA_MID) else alone
        assert encoding == expected.component(UNET)[name]
    assert replace(chooser, anchor=LOUD).choice((FAINT,)).anchor == FAINT  # who is not there cannot be its anchor


def test_the_base_is_in_the_first_group_and_wider_ranges_are_behind(grouped: GroupedProfile, chooser: RangeChooser) -> None:
    assert grouped.grouping.groups == ((FAINT, BASE_SOURCE), (LOUD,))
    assert (grouped.group_of, grouped.profile.group_count) == ({FAINT: 0, LOUD: 1}, 2)
    assert [choice.anchor for choice in grouped.choices] == [FAINT, LOUD]
    for number, group in enumerate(grouped.grouping.groups):
        assert grouped.profile.of_group(number) == chooser.ranges(group).profile


def test_integers_mean_the_same_in_every_group(grouped: GroupedProfile, chooser: RangeChooser, tiny: Tiny) -> None:
    first, second = (grouped.profile.of_group(number) for number in range(2))
    assert first.digest != second.digest
    for name, encoding in first.component(UNET).items():
        if role_of(name) in (*CONSTANT_ROLES, Role.LORA_MID):
            assert second.component(UNET)[name] == encoding
    for adapter in tiny.adapters:
        bound = [quantize_adapter(adapter, chooser.table, profile) for profile in (first, second)]
        assert all(np.array_equal(bound[0][name], bound[1][name]) for name in bound[0])


def test_sums_of_both_groups_find_room_for_a_x(chooser: RangeChooser, tiny: Tiny) -> None:
    """At 8 bits the first group has ranges of its own there, and the other those of everyone."""
    options = UnifyOptions(rules=with_eight_bit(tiny.statistics.sites[UNET]))
    pooled = unify(chooser.statistics, {}, chooser.table, tiny.adapters, options)
    eight = replace(chooser, pooled=pooled, options=options)
    profile = grouped_profile(eight, Grouping(groups=((LOUD,), (FAINT, BASE_SOURCE)), losses={}, together={}, pairs={})).profile
    first, second = (profile.of_group(number).component(UNET) for number in range(2))
    mids = [name for name in first if role_of(name) is Role.LORA_MID]
    assert mids
    for name in mids:
        assert second[name] == pooled.component(UNET)[name]
        assert first[name].bits == 8
        assert first[name].scale[0] < second[name].scale[0]


def test_the_profile_comes_back_from_its_file(grouped: GroupedProfile) -> None:
    again = msgspec.json.decode(msgspec.json.encode(grouped.profile), type=Profile)
    assert (again, again.digest) == (grouped.profile, grouped.profile.digest)


def test_losses_are_against_a_group_of_ones_own(chooser: RangeChooser, tiny: Tiny, probes: Probes) -> None:
    meter = LossMeter(tiny.network, tiny.adapters, probes=probes, chooser=chooser)
    assert meter.losses((LOUD,)) == {LOUD: 0.0}
    together = meter.losses((FAINT, LOUD, BASE_SOURCE))
    assert together[FAINT] > max(3.0, together[LOUD])  # whose values fill a small part of the other's ranges
    apart = measured_grouping(meter, tiny.adapters, probes, GroupLimits(1.0, 2))
    assert {frozenset(group) for group in apart.groups} == {frozenset((FAINT, BASE_SOURCE)), frozenset((LOUD,))}
    assert apart.together == together
    assert apart.losses[FAINT] <= 1.0 < apart.pairs[FAINT][LOUD]
