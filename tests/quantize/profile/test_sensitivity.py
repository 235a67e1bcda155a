"""QSS: zero where nothing is lost, more where more is; the same for any batch; honest about too little data."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from quad.core.errors import InputError
from quad.core.profile import Profile
from quad.lora.read import LowRank
from quad.model.base.open import Base
from quad.model.slots.layers import weights_of
from quad.quantize.encodings.ranges import RangeOptions
from quad.quantize.encodings.rules import Rule
from quad.quantize.observe.calibrate import CalibrationSample, component_networks
from quad.quantize.observe.probe import one_side_each
from quad.quantize.observe.probes import Probe, ProbeOptions, record_probes
from quad.quantize.profile.divergence import MIN_VALUES
from quad.quantize.profile.pooled_profile import UnifyOptions, unify
from quad.quantize.profile.sensitivity import bootstrap_means, float_outputs, score_adapters
from quad.quantize.profile.shared_ranges import own_profile, own_profiles

COARSE = (Rule(component="*", name="*.weight", bits=8, shape="channel"), Rule(component="*", name="*", bits=8, shape="asymmetric"))


@pytest.fixture(scope="module")
def probes(base: Base, tiny: Any, samples: list[CalibrationSample]) -> dict[str, list[Probe]]:
    return record_probes(base, component_networks(base, tiny.network), tiny.table, tiny.adapters, samples, ProbeOptions(per_adapter=None))


def owned(tiny: Any, options: UnifyOptions) -> dict[str, Profile]:
    pooled = unify(tiny.statistics, {"unet": weights_of(tiny.network)}, tiny.table, tiny.adapters, options)
    return own_profiles(pooled, tiny.statistics, tiny.table, tiny.adapters, options)


def test_own_profile_is_what_the_adapter_alone_would_get(tiny: Any) -> None:
    options = UnifyOptions()
    pooled = unify(tiny.statistics, {"unet": weights_of(tiny.network)}, tiny.table, tiny.adapters, options)
    for adapter in tiny.adapters:
        own = own_profile(pooled, tiny.statistics, tiny.table, adapter, options)
        assert set(own.component("unet")) == set(pooled.component("unet"))
        alone = replace_sources(tiny.statistics, adapter.name)
        assert own.encodings == unify(alone, {"unet": weights_of(tiny.network)}, tiny.table, (adapter,), options).encodings
        assert own.encodings != pooled.encodings


def replace_sources(statistics: Any, source: str) -> Any:
    sites = {c: {n: {source: by[source]} for n, by in named.items() if source in by} for c, named in statistics.sites.items()}
    return replace(statistics, sites=sites)


def test_fewer_bits_make_every_adapter_more_sensitive(tiny: Any, probes: dict[str, list[Probe]]) -> None:
    fine = score_adapters(tiny.network, tiny.table, tiny.adapters, owned(tiny, UnifyOptions()), probes)
    options = UnifyOptions(lora_bits=8, ranges=RangeOptions(method="minmax"), rules=COARSE)
    coarse = score_adapters(tiny.network, tiny.table, tiny.adapters, owned(tiny, options), probes)
    for name, score in fine.scores.items():
        low, high = score.interval
        assert 0 < score.qss < coarse.scores[name].qss
        assert low <= score.qss <= high
        assert score.sqnr_db > coarse.scores[name].sqnr_db
        assert len(score.calls) == len(probes[name])


def guided(one: Probe, other: Probe) -> Probe:
    """Both as the sides of one call."""
    inputs = {name: values if name == "timestep" else np.concatenate([values, other.inputs[name]]) for name, values in one.inputs.items()}
    assert one.expected is not None
    assert other.expected is not None
    return replace(one, inputs=inputs, expected=np.concatenate([one.expected, other.expected]))


def test_one_side_of_a_call_is_scored_where_it_fills_a_histogram(tiny: Any, probes: dict[str, list[Probe]]) -> None:
    profiles, adapter = owned(tiny, UnifyOptions()), tiny.adapters[0]
    calls = [guided(one, other) for one, other in zip(probes[adapter.name][::2], probes[adapter.name][1::2], strict=False)]
    enough = calls * (1 + MIN_VALUES // sum(np.size(call.expected[:1]) for call in calls if call.expected is not None))
    sides = one_side_each(enough)
    assert [len(side.inputs["sample"]) for side in sides] == [1] * len(enough)
    for number, (side, call) in enumerate(zip(sides, enough, strict=True)):
        assert np.array_equal(side.inputs["sample"][0], call.inputs["sample"][number % 2])
    again = one_side_each(sides)
    assert all(np.array_equal(one.inputs["sample"], other.inputs["sample"]) for one, other in zip(again, sides, strict=True))
    scored, by_sides = (
        score_adapters(tiny.network, tiny.table, [adapter], profiles, {adapter.name: asked}).scores[adapter.name]
        for asked in (enough, sides)
    )
    assert scored == by_sides
    few = score_adapters(tiny.network, tiny.table, [adapter], profiles, {adapter.name: calls[:1]}).scores[adapter.name]
    assert few.qss_hist is None  # one call's two sides are all there is, and both count


def test_without_encodings_nothing_is_lost(tiny: Any, probes: dict[str, list[Probe]]) -> None:
    slots = {name: encoding for name, encoding in tiny.profile.component("unet").items() if "lora_A" in name or "lora_B" in name}
    zero = [replace(a, weights={p: LowRank(pair.a * 0, pair.b * 0) for p, pair in a.weights.items()}) for a in tiny.adapters]
    profiles = {adapter.name: Profile(encodings={"unet": slots}) for adapter in zero}
    unheard = {name: [replace(probe, expected=None) for probe in found] for name, found in probes.items()}
    scores = score_adapters(tiny.network, tiny.table, zero, profiles, unheard).scores
    assert {score.qss for score in scores.values()} == {0.0}


def test_calls_that_run_together_run_as_they_would_alone(tiny: Any, probes: dict[str, list[Probe]]) -> None:
    adapter = tiny.adapters[1]
    many = [replace(probe, expected=None) for probe in (*probes["loud"], *probes["base"])]
    for probe, found in zip(many, float_outputs(tiny.network, tiny.table, adapter, many), strict=True):
        with torch.no_grad():
            alone = tiny.network(*probe.tensors(), tiny.slots(adapter)).numpy()
        np.testing.assert_allclose(found, alone, atol=1e-5)


def test_the_json_has_every_adapter_and_too_few_values_give_no_histogram(tiny: Any, probes: dict[str, list[Probe]]) -> None:
    sensitivity = score_adapters(tiny.network, tiny.table, tiny.adapters, owned(tiny, UnifyOptions()), probes)
    fields = json.loads(json.dumps(sensitivity.to_json(), allow_nan=False))
    assert fields["ranking"] == list(sensitivity.ranking)
    assert set(fields["qss"]) == {"faint", "loud"}
    assert fields["qss_hist"] == {"faint": None, "loud": None}
    assert fields["tau"] is None
    many = {name: found * 40 for name, found in probes.items()}  # 16k values or more
    scores = score_adapters(tiny.network, tiny.table, tiny.adapters, owned(tiny, UnifyOptions()), many)
    assert all(score.qss_hist is not None and score.hist_floor is not None for score in scores.scores.values())
    assert scores.tau in (-1.0, 1.0)


def test_resampling_is_paired_over_samplers_of_any_length() -> None:
    run = [1.0, 2.0, 3.0, 4.0]
    means = bootstrap_means({"a": run, "twice": [2 * x for x in run], "longer": [x for x in run for _ in range(2)]})
    np.testing.assert_allclose(means["twice"], 2 * means["a"])
    assert np.corrcoef(means["a"], means["longer"])[0, 1] > 0.5
    assert means["longer"].std() < means["a"].std()


def test_nan_and_missing_probes_are_one_line(tiny: Any, probes: dict[str, list[Probe]]) -> None:
    adapter = tiny.adapters[0]
    profiles = owned(tiny, UnifyOptions())
    with pytest.raises(InputError, match=r"^sensitivity: expected a probe of adapter 'faint', found none; [^\n]+$"):
        score_adapters(tiny.network, tiny.table, [adapter], profiles, {})
    path, pair = next(iter(adapter.weights.items()))
    broken = replace(adapter, weights={path: LowRank(pair.a * np.float32(np.nan), pair.b)})
    with pytest.raises(InputError, match=r"^adapter 'faint', \S+: expected finite weights, found NaN or Inf; [^\n]+$"):
        score_adapters(tiny.network, tiny.table, [broken], profiles, probes)
    bad = replace(probes["faint"][0], expected=None, inputs={**probes["faint"][0].inputs, "timestep": np.array([np.nan], np.float32)})
    with pytest.raises(InputError, match=r"^sensitivity of adapter 'faint': expected finite network outputs, found NaN or Inf; [^\n]+$"):
        float_outputs(tiny.network, tiny.table, adapter, [bad])
