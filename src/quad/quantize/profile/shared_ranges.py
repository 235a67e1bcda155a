"""The pooled profile with other activation ranges: those of one adapter alone, of the anchor, or of several.

Source: docs/method.md section 4.

Weights do not depend on the adapter, and networks without slots do not either: both are taken from the pooled profile as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from quad.core.encoding import Encoding
from quad.core.margins import widen
from quad.core.profile import Profile
from quad.core.slots import SlotTable
from quad.core.tensor_names import Role, role_of
from quad.lora.read import FloatAdapter
from quad.quantize.encodings.histogram import Density, pool
from quad.quantize.encodings.ranges import RangeOptions, choose_range, expected_error
from quad.quantize.encodings.rules import Rule, rule_for
from quad.quantize.observe.observers import SiteStatistics, Statistics
from quad.quantize.profile.anchor import AnchorChoice
from quad.quantize.profile.pooled_profile import UnifyOptions, encode_site, site_encoding, slot_encodings

Bounds = tuple[float, float]
TOLERATED = 2.0  # times the error that pooled ranges would make, 3 dB: what an 8-bit anchor range may cost another adapter


@dataclass(frozen=True)
class AnchoredProfile:
    """A profile with the anchor's ranges.

    Args:
        widened: activation sites whose range is not the anchor's alone, because another adapter would have been clipped.
        sites: how many could have been.
    """

    profile: Profile
    widened: tuple[str, ...]
    sites: int


def own_profile(
    pooled: Profile, statistics: Statistics, table: SlotTable, adapter: FloatAdapter, options: UnifyOptions
) -> Profile:  # fmt: skip
    """The profile that one adapter would get if it were alone: activation ranges from its own runs, slot ranges from its own weights.

    Args:
        pooled: of `unify`, with the same options.
    """
    encodings = _copied(pooled)
    for component in _slotted(table):
        for name, by_source in statistics.sites[component].items():
            if adapter.name in by_source and name in encodings[component]:
                density = statistics.density(component, name, (adapter.name,))
                encoding = site_encoding(component, name, density, options)
                encodings[component][name] = encoding or encodings[component][name]
    # On the literal lattice W, A and B share their scales, whoever is alone.
    for component, name, slot_encoding in () if options.literal_shared_scale else slot_encodings(table, (adapter,), options):
        encodings[component][name] = slot_encoding
    return msgspec.structs.replace(pooled, encodings=encodings)


def own_profiles(
    pooled: Profile, statistics: Statistics, table: SlotTable, adapters: Sequence[FloatAdapter], options: UnifyOptions
) -> dict[str, Profile]:  # fmt: skip
    """`own_profile` of each adapter, by name."""
    return {adapter.name: own_profile(pooled, statistics, table, adapter, options) for adapter in adapters}


def choose_ranges(
    pooled: Profile, statistics: Statistics, table: SlotTable, choice: AnchorChoice, options: UnifyOptions
) -> AnchoredProfile:
    """The profile of a choice: activation ranges from the statistics of its sources, and never at another adapter's cost.

    A 16-bit range that would leave less than half of its margin to values seen with another adapter is widened to leave that much: bits
    are plenty there. An 8-bit range that would cost another adapter twice the error of the pooled range is the pooled one.
    What depends on the adapter's own A and B stays pooled: slot ranges are the largest over all adapters, so that none is refused, and
    `lora_mid` is A x, of which the anchor's A tells nothing: where the anchor has no such slot, it is zero.

    Args:
        pooled: of `unify`, with the same options.
    """
    named = msgspec.structs.replace(pooled, mode=choice.mode, anchor=choice.anchor)
    if choice.sources is None:
        return AnchoredProfile(named, (), 0)
    encodings, widened, sites = _copied(pooled), [], 0
    for component in _slotted(table):
        for name, by_source in statistics.sites[component].items():
            rule = rule_for(component, name, options.rules)
            if rule is None or rule.fixed or role_of(name) is Role.LORA_MID or not set(choice.sources) & set(by_source):
                continue
            sites += 1
            bounds, wider = _shared(rule, by_source, choice.sources, options.ranges)
            encodings[component][name] = encode_site(rule, bounds)
            if wider:
                widened.append(f"{component}/{name}")
    return AnchoredProfile(msgspec.structs.replace(named, encodings=encodings), tuple(widened), sites)


def _shared(rule: Rule, by_source: Mapping[str, SiteStatistics], sources: Sequence[str], ranges: RangeOptions) -> tuple[Bounds, bool]:
    """The site's range by its sources, and whether others made another of it."""
    theirs = pool([by_source[source].histogram for source in sources if source in by_source])
    bounds = choose_range(theirs, rule.bits, ranges)
    everyone = [pool([statistics.histogram]) for statistics in by_source.values()]
    if rule.bits >= 16:
        allowed = _with_margin(bounds, everyone, ranges)
    else:
        pooled = choose_range(pool([statistics.histogram for statistics in by_source.values()]), rule.bits, ranges)
        allowed = pooled if _costs_too_much(bounds, pooled, everyone, rule, ranges) else bounds
    return allowed, allowed != bounds


def _with_margin(bounds: Bounds, everyone: Sequence[Density], ranges: RangeOptions) -> Bounds:
    """Widened to half of the margin over what every adapter brings."""
    reaches = [widen((density.low, density.high), ranges.margin.half) for density in everyone]
    return min(bounds[0], *(low for low, _ in reaches)), max(bounds[1], *(high for _, high in reaches))


def _costs_too_much(bounds: Bounds, pooled: Bounds, everyone: Sequence[Density], rule: Rule, ranges: RangeOptions) -> bool:
    return any(
        expected_error(density, bounds, rule.bits, ranges.p) > TOLERATED * expected_error(density, pooled, rule.bits, ranges.p)
        for density in everyone
    )


def _copied(profile: Profile) -> dict[str, dict[str, Encoding]]:
    return {component: dict(named) for component, named in profile.encodings.items()}


def _slotted(table: SlotTable) -> list[str]:
    return sorted(table.components)
