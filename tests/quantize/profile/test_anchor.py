"""The anchor is the most sensitive adapter unless a test says that several are equal; no other adapter is clipped by it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from quad.core.errors import UsageError
from quad.model.base.open import Base
from quad.model.slots.layers import weights_of
from quad.quantize.encodings.rules import with_eight_bit
from quad.quantize.observe.calibrate import CalibrationSample, component_networks
from quad.quantize.observe.probes import ProbeOptions, record_probes
from quad.quantize.profile.anchor import AnchorChoice, CrossTable, choose, cross_table
from quad.quantize.profile.pooled_profile import UnifyOptions, unify
from quad.quantize.profile.sensitivity import Score, Sensitivity
from quad.quantize.profile.shared_ranges import choose_ranges, own_profiles


def sensitivity(**calls: Sequence[float]) -> Sensitivity:
    scores = {
        n: Score(qss=float(np.mean(c)), interval=(0.0, 1.0), qss_hist=None, hist_floor=None, sqnr_db=40.0, calls=tuple(c))
        for n, c in calls.items()
    }
    return Sensitivity(scores, None)


def noisy(mean: float, seed: int, count: int = 64, spread: float = 0.02) -> list[float]:
    return list(mean * (1 + spread * np.random.default_rng(seed).standard_normal(count)))


def test_the_most_sensitive_adapter_is_the_anchor() -> None:
    choice = choose(sensitivity(a=noisy(1.0, 0), b=noisy(3.0, 1), c=noisy(2.0, 2)))
    assert (choice.mode, choice.anchor, choice.sources) == ("anchor", "b", ("b",))
    assert choice.reason.startswith("b is the most sensitive, 1.5")
    json.dumps(choice.to_json(), allow_nan=False)


def test_equal_adapters_are_unified_and_two_equal_leaders_among_themselves() -> None:
    every = choose(sensitivity(a=noisy(1.0, 0), b=noisy(1.01, 1), c=noisy(0.99, 2)))
    assert (every.mode, every.anchor, every.sources) == ("unified", None, None)
    assert every.spread is not None
    assert every.spread < 0.10
    leaders = choose(sensitivity(a=noisy(1.0, 0), b=noisy(3.0, 1), c=noisy(3.01, 2)))
    assert (leaders.mode, leaders.sources) == ("unified", ("c", "b"))
    assert "c and b" in leaders.reason


def test_too_little_data_is_not_equality() -> None:
    """Equal means with wide scatter: nothing is shown to be equal."""
    assert choose(sensitivity(a=[0.1, 2.0, 0.9], b=[1.9, 0.2, 0.9])).mode == "anchor"


def test_what_is_asked_for_goes_first() -> None:
    scores = sensitivity(a=[1.0], b=[3.0])
    assert choose(scores, "a").anchor == "a"
    assert choose(scores, "unified").mode == "unified"
    assert choose(sensitivity(a=[1.0])).reason == "a is the only adapter"
    assert choose(sensitivity()).mode == "unified"
    with pytest.raises(UsageError, match=r"^--anchor: expected auto, unified, a, b, found 'c'; choose one of these$"):
        choose(scores, "c")


def bounds(encoding: Any) -> tuple[float, float]:
    zero, scale = encoding.zero_point[0], encoding.scale[0]
    return (encoding.qmin - zero) * scale, (encoding.qmax - zero) * scale


def anchored(tiny: Any, choice: AnchorChoice, options: UnifyOptions) -> Any:
    pooled = unify(tiny.statistics, {"unet": weights_of(tiny.network)}, tiny.table, tiny.adapters, options)
    return pooled, choose_ranges(pooled, tiny.statistics, tiny.table, choice, options)


@pytest.mark.parametrize("name", ["faint", "loud"])
def test_an_anchor_clips_no_other_adapter_at_16_bits(tiny: Any, name: str) -> None:
    pooled, chosen = anchored(tiny, AnchorChoice(mode="anchor", anchor=name, sources=(name,), reason=""), UnifyOptions())
    assert (chosen.profile.mode, chosen.profile.anchor) == ("anchor", name)
    assert set(chosen.profile.component("unet")) == set(pooled.component("unet"))
    for site, by_source in tiny.statistics.sites["unet"].items():
        encoding = chosen.profile.component("unet")[site]
        low, high = bounds(encoding)
        if site.endswith((".p", ".lora_mid")):
            assert encoding == pooled.component("unet")[site]
            continue
        for found in by_source.values():
            assert low <= 1.49 * min(found.histogram.low, 0.0)
            assert high >= 1.49 * max(found.histogram.high, 0.0)
    widened = {site.split("/")[1] for site in chosen.widened}
    own = own_profiles(pooled, tiny.statistics, tiny.table, tiny.adapters, UnifyOptions())[name].component("unet")
    anchors = {site for site in tiny.statistics.sites["unet"] if chosen.profile.component("unet")[site] == own[site]}
    assert (
        anchors - {s for s in anchors if s.endswith((".p", ".lora_mid"))}
        == {site for site in tiny.statistics.sites["unet"] if not site.endswith((".p", ".lora_mid"))} - widened
    )


def test_an_8_bit_anchor_range_holds_unless_it_costs_another_too_much(tiny: Any) -> None:
    options = UnifyOptions(rules=with_eight_bit([site for site in tiny.statistics.sites["unet"] if not site.endswith(".lora_mid")]))
    pooled, chosen = anchored(tiny, AnchorChoice(mode="anchor", anchor="faint", sources=("faint",), reason=""), options)
    own = own_profiles(pooled, tiny.statistics, tiny.table, tiny.adapters, options)["faint"].component("unet")
    widened = {site.split("/")[1] for site in chosen.widened}
    assert 0 < len(widened) < chosen.sites
    for site in tiny.statistics.sites["unet"]:
        if not site.endswith((".p", ".lora_mid")):
            expected = pooled.component("unet") if site in widened else own
            assert chosen.profile.component("unet")[site] == expected[site]


def test_unified_is_the_pool(tiny: Any) -> None:
    pooled, chosen = anchored(tiny, AnchorChoice(mode="unified", anchor=None, sources=None, reason=""), UnifyOptions())
    assert chosen.profile.encodings == pooled.encodings
    assert (chosen.profile.mode, chosen.profile.anchor) == ("unified", None)


def test_the_cross_table_has_each_adapters_own_score_on_its_diagonal(base: Base, tiny: Any, samples: list[CalibrationSample]) -> None:
    from quad.quantize.profile.sensitivity import score_adapters

    options = UnifyOptions(rules=with_eight_bit(tiny.statistics.sites["unet"]))
    pooled = unify(tiny.statistics, {"unet": weights_of(tiny.network)}, tiny.table, tiny.adapters, options)
    own = own_profiles(pooled, tiny.statistics, tiny.table, tiny.adapters, options)
    probes = record_probes(base, component_networks(base, tiny.network), tiny.table, tiny.adapters, samples, ProbeOptions(per_adapter=1))
    table = cross_table(tiny.network, tiny.table, tiny.adapters, own, probes)
    scores = score_adapters(tiny.network, tiny.table, tiny.adapters, own, probes).scores
    assert table.names == ("faint", "loud")
    for i, name in enumerate(table.names):
        assert table.scores[i][i] == pytest.approx(scores[name].qss, rel=1e-6)
    json.dumps(table.to_json(), allow_nan=False)


def test_the_best_column_and_when_none_serves_all() -> None:
    good = CrossTable(("a", "b", "c"), ((1.0, 1.1, 5.0), (9.0, 2.0, 4.0), (1.5, 1.2, 1.0)))
    assert (good.best, good.one_serves_all) == ("b", True)
    apart = CrossTable(("a", "b"), ((1.0, 5.0), (5.0, 1.0)))
    assert not apart.one_serves_all
