"""The pooled profile: complete, holding every adapter, of the bits that the rules name; nothing to pool is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from quad.core.digests import canonical_json
from quad.core.errors import InputError
from quad.core.margins import NO_MARGIN, SLOT_B, Margin
from quad.core.slots import SlotTable
from quad.lora.fit.integers import balance
from quad.model.slots.layers import weights_of
from quad.quantize.encodings.ranges import RangeOptions
from quad.quantize.encodings.rules import Rule
from quad.quantize.observe.observers import Feed, Statistics, observe
from quad.quantize.profile.pooled_profile import UnifyOptions, encode_site, unify


def bounds(encoding: Any) -> tuple[float, float]:
    zero, scale = encoding.zero_point[0], encoding.scale[0]
    return (encoding.qmin - zero) * scale, (encoding.qmax - zero) * scale


def test_every_weight_site_and_slot_has_an_encoding(tiny: Any) -> None:
    names = set(tiny.profile.component("unet"))
    assert names == {*weights_of(tiny.network), *tiny.network.sites, *tiny.table.input_shapes()}


@pytest.mark.parametrize("method", ["mse", "minmax"])
def test_pooled_ranges_hold_every_adapter(tiny: Any, method: str) -> None:
    options = UnifyOptions(ranges=RangeOptions(method=method))  # type: ignore[arg-type]
    profile = unify(tiny.statistics, {}, tiny.table, tiny.adapters, options).component("unet")
    for name, by_source in tiny.statistics.sites["unet"].items():
        low, high = bounds(profile[name])
        step = profile[name].scale[0]
        for statistics in by_source.values():
            assert low - step <= statistics.histogram.low
            assert statistics.histogram.high <= high + step
    for adapter in tiny.adapters:
        for path, pair in balance(adapter).weights.items():
            assert np.abs(pair.a).max() <= bounds(profile[f"{path}.lora_A"])[1] * (1 + 1e-6)
            assert np.abs(pair.b).max() <= bounds(profile[f"{path}.lora_B"])[1] / SLOT_B[16].factor * (1 + 1e-6)


def test_kinds_of_encodings(tiny: Any) -> None:
    profile = tiny.profile.component("unet")
    fine = {"conv_in.weight", "conv_out.weight", "time_embedding.linear_1.weight", "time_embedding.linear_2.weight"}
    for name, encoding in profile.items():
        kind = (encoding.bits, encoding.signed, encoding.symmetric, encoding.axis)
        if name.endswith(".weight"):
            assert kind == (16 if name in fine else 8, True, True, 0)
        elif name.endswith((".lora_A", ".lora_B")):
            assert kind == (16, True, True, None)
        else:
            assert kind == (16, False, False, None)
        if name.endswith(".p"):
            assert encoding.scale == (2.0**-16,)
            assert encoding.zero_point == (0,)


def test_the_order_of_sources_does_not_matter(tiny: Any) -> None:
    sites = {name: dict(reversed(sources.items())) for name, sources in reversed(tiny.statistics.sites["unet"].items())}
    turned = Statistics({"unet": sites})
    weights = {"unet": weights_of(tiny.network)}
    again = unify(turned, weights, tiny.table, tuple(reversed(tiny.adapters)))
    assert canonical_json(again) == canonical_json(tiny.profile)


def test_parents_are_kept(tiny: Any) -> None:
    assert unify(tiny.statistics, {}, tiny.table, (), UnifyOptions(parents={"base": "abc"})).parents == {"base": "abc"}


def test_empty_calibration_is_refused(tiny: Any) -> None:
    with pytest.raises(InputError, match=r"^calibration: expected at least one sample, found none; [^\n]+$"):
        observe({"unet": tiny.network}, [])
    with pytest.raises(InputError, match="reached no site"):
        observe({"unet": tiny.network}, [Feed("idle", lambda: None)])
    with pytest.raises(InputError, match=r"^profile: expected statistics [^\n]+$"):
        unify(Statistics(), {}, SlotTable(()), ())


def test_a_weight_that_is_not_finite_is_refused(tiny: Any) -> None:
    with pytest.raises(InputError, match=r"^unet, conv_in.weight: expected finite weights, found NaN or Inf; [^\n]+$"):
        unify(tiny.statistics, {"unet": {"conv_in.weight": np.full((2, 2), np.nan, np.float32)}}, SlotTable(()), ())


def test_room_is_left_on_both_sides() -> None:
    """A x that calibration saw on one side of 0 only is on the other where alignment turns the sign of A."""
    rule = Rule(component="*", name="*.lora_mid", bits=16, shape="asymmetric", margin=Margin(7.0, mirrored=True))
    low, high = bounds(encode_site(rule, (-2.0, 0.0)))
    assert low == pytest.approx(-16.0, rel=1e-4)
    assert high == pytest.approx(16.0, rel=1e-4)
    assert bounds(encode_site(replace(rule, margin=NO_MARGIN), (-2.0, 0.0)))[1] == 0.0


def test_the_literal_reading_puts_a_layer_and_its_adapters_on_one_lattice(tiny: Any) -> None:
    weights = {"unet": weights_of(tiny.network)}
    free, literal = (
        unify(tiny.statistics, weights, tiny.table, tiny.adapters, UnifyOptions(literal_shared_scale=on)) for on in (False, True)
    )
    for slot in tiny.table.slots:
        names = (f"{slot.path}.weight", slot.a_name, slot.b_name)
        scales = {scale for name in names for scale in literal.component("unet")[name].scale}
        assert len(scales) == 1
        # The coarsest of the three: nothing is clipped, and A and B lose levels.
        assert scales.pop() >= max(free.component("unet")[names[0]].scale)
        for name in names[1:]:
            assert literal.component("unet")[name].scale > free.component("unet")[name].scale
    untouched = free.component("unet").keys() - {n for s in tiny.table.slots for n in (f"{s.path}.weight", s.a_name, s.b_name)}
    assert all(free.component("unet")[name] == literal.component("unet")[name] for name in untouched)
