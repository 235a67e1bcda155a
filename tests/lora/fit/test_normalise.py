"""Normalised factors: the product stays, any adapter fits one range, and strength, sign and padding are in the scales alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from quad.core.errors import CompatibilityError, InputError
from quad.core.profile import Profile
from quad.core.slots import NORMALISED, SlotTable
from quad.lora.adapter import FloatAdapter, LowRank
from quad.lora.fit.integers import balanced_inputs, dequantize_adapter, integer_slots, quantize_adapter, rescaled_inputs
from quad.lora.fit.normalise import normalise_pair, slot_units
from quad.lora.fit.slot_inputs import slot_inputs
from quad.quantize.profile.pooled_profile import UnifyOptions, unify
from tests.lora.fit.test_rescale import PAIRS, product

Make = Callable[..., FloatAdapter]


def normalised(tiny: Any) -> SlotTable:
    return SlotTable(tiny.table.slots, NORMALISED)


def profile_of(tiny: Any, table: SlotTable, bits: int = 16, **options: Any) -> Profile:
    return unify(tiny.statistics, {}, table, tiny.adapters, UnifyOptions(lora_bits=bits, **options))


def update(inputs: dict[str, NDArray[Any]], table: SlotTable, index: int) -> NDArray[np.float64]:
    """`B diag(s) A` of one slot, by the definition."""
    slot, scales = table.slots[index], [*inputs.values()][-1]
    start = sum(other.rank for other in table.slots[:index])
    a, b = inputs[slot.a_name].reshape(slot.rank, -1), inputs[slot.b_name].reshape(slot.out_features, -1)
    return (b.astype(np.float64) * scales[start : start + slot.rank]) @ a


@given(PAIRS)
def test_rows_and_columns_end_at_one_and_the_product_stays(pair: LowRank) -> None:
    found = normalise_pair(pair)
    np.testing.assert_array_equal(np.abs(found.pair.a).reshape(pair.rank, -1).max(axis=1), 1)
    np.testing.assert_array_equal(np.abs(found.pair.b).reshape(len(pair.b), -1).max(axis=0), 1)
    true = product(pair)
    scaled = LowRank(found.pair.a, found.pair.b * found.scales.reshape(1, -1, *(1,) * (pair.b.ndim - 2)))
    np.testing.assert_allclose(product(scaled), true, rtol=0, atol=2e-6 * np.abs(true).max())
    assert normalise_pair(pair) is found


def test_a_channel_without_a_product_has_scale_zero(make_adapter: Make) -> None:
    pair = next(iter(make_adapter("a", 3, 4, (1.0, 1.0)).weights.values()))
    pair.b[:, 1] = 0
    found = normalise_pair(LowRank(pair.a, pair.b))
    assert found.scales.all() or not (found.pair.a[1].any() or found.pair.b[:, 1].any())
    empty = normalise_pair(LowRank(pair.a, np.zeros_like(pair.b)))
    assert not any(array.any() for array in (empty.scales, empty.pair.a, empty.pair.b))


@pytest.mark.parametrize("bits", [16, 8])
def test_any_strength_fits_the_encodings_of_the_build(tiny: Any, make_adapter: Make, bits: int) -> None:
    """Ten thousand times as strong, weaker or turned around: the integers of A and B are the same, and the scales hold it."""
    table = integer_slots(normalised(tiny), bits)
    profile = profile_of(tiny, table, bits)
    adapter = make_adapter("later", 9, 3, (1.0, 1.0))
    integers = quantize_adapter(adapter, table, profile)
    for factor in (1e4, 1e-4, -1.0):
        other = replace(adapter, weights={path: LowRank(pair.a, pair.b * np.float32(factor)) for path, pair in adapter.weights.items()})
        strong = quantize_adapter(other, table, profile)
        for name in strong:
            wanted = integers[name] * np.float32(abs(factor)) if name in table.scale_inputs() else integers[name]
            if factor > 0:
                np.testing.assert_allclose(strong[name], wanted, rtol=1e-5, atol=1)
        for index in range(2):
            true = factor * update(dequantize_adapter(integers, table, profile), table, index)
            np.testing.assert_allclose(
                update(dequantize_adapter(strong, table, profile), table, index), true, atol=0.02 * np.abs(true).max()
            )


def test_the_builds_own_adapters_have_scales_up_to_one(tiny: Any) -> None:
    table = integer_slots(normalised(tiny), 16)
    profile = profile_of(tiny, table)
    vectors = [rescaled_inputs(adapter, table, profile)["unet.lora_scales"] for adapter in tiny.adapters]
    ends = np.cumsum([slot.rank for slot in table.slots])[:-1]
    for slot, parts in zip(table.slots, np.split(np.stack(vectors), ends, axis=1), strict=True):
        assert parts.max() == pytest.approx(1, abs=1e-6)
        assert slot_units(tiny.adapters, table)[slot.path] == pytest.approx(
            profile.component("unet")[slot.b_name].scale[0] * 32767, rel=1e-6
        )


def test_what_is_written_is_the_adapter(tiny: Any) -> None:
    table = integer_slots(normalised(tiny), 16)
    profile = profile_of(tiny, table)
    for adapter in tiny.adapters:
        given, floats = dequantize_adapter(quantize_adapter(adapter, table, profile), table, profile), balanced_inputs(adapter, table)
        plain = slot_inputs(adapter, table)
        assert [*given] == [*floats] == [*plain] == [*table.input_shapes()]
        for index in range(2):
            true = update(plain, table, index)
            np.testing.assert_allclose(update(floats, table, index), true, atol=2e-6 * np.abs(true).max())
            np.testing.assert_allclose(update(given, table, index), true, atol=2e-4 * np.abs(true).max())


def test_the_zero_adapter_is_zeros(tiny: Any) -> None:
    table = integer_slots(normalised(tiny), 16)
    assert not any(array.any() for array in quantize_adapter(None, table, profile_of(tiny, table)).values())


@pytest.mark.parametrize("seed", range(3))
def test_with_8_bits_channels_of_unlike_size_round_better_than_in_one_range(tiny: Any, make_adapter: Make, seed: int) -> None:
    """A loud adapter beside a faint one: searched ranges are the loud one's."""
    faint, errors = make_adapter("later", 100 + seed, 4, (0.01, 0.05)), {}
    for slots in (tiny.table, normalised(tiny)):
        table = integer_slots(slots, 8)
        profile = profile_of(tiny, table, 8)
        given = dequantize_adapter(quantize_adapter(faint, table, profile), table, profile)
        if not table.normalised:
            given["scales"] = np.ones(sum(slot.rank for slot in table.slots), np.float32)
        true = product(faint.weights[table.slots[0].path])
        errors[table.normalised] = np.square(update(given, table, 0) - true).sum()
    assert errors[True] < errors[False]


def test_integer_scales_have_a_range_and_keep_what_fits(tiny: Any, make_adapter: Make) -> None:
    table = integer_slots(normalised(tiny), 16, 32639)
    profile = profile_of(tiny, table, integer_scales=True, int16_largest=32639)
    encoding = profile.component("unet")["unet.lora_scales"]
    assert (encoding.dtype, encoding.largest, encoding.scale[0] * 32639) == (np.int16, 32639, pytest.approx(8.0))
    integers = quantize_adapter(tiny.adapters[1], table, profile)
    assert integers["unet.lora_scales"].dtype == np.float32
    rounded = dequantize_adapter(integers, table, profile)["unet.lora_scales"]
    np.testing.assert_allclose(rounded, integers["unet.lora_scales"], atol=encoding.scale[0] * 0.501)
    with pytest.raises(CompatibilityError, match=r"unet.lora_scales: expected weights within 8"):
        quantize_adapter(make_adapter("huge", 5, 2, (100.0, 100.0)), table, profile)


def test_integer_scales_hold_those_of_the_bases_correction(tiny: Any) -> None:
    table, path = integer_slots(normalised(tiny), 16, 32639), tiny.table.slots[0].path
    profile = profile_of(tiny, table, integer_scales=True, corrections={path: 400.0})
    encodings = profile.component("unet")
    unit = encodings[f"{path}.lora_B"].scale[0] * encodings[f"{path}.lora_B"].qmax
    assert 400.0 / unit == pytest.approx(8.0, rel=1e-3)
    assert profile_of(tiny, table, corrections={path: 400.0}) == profile_of(tiny, table)


def test_a_weight_that_is_no_number_is_refused(tiny: Any, make_adapter: Make) -> None:
    adapter = make_adapter("broken", 1, 2, (1.0, float("nan")))
    with pytest.raises(InputError, match="expected finite weights"):
        balanced_inputs(adapter, normalised(tiny))


@given(st.floats(-8, 8, width=32), st.integers(0, 50))
def test_a_weight_is_a_factor_of_the_scales(weight: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pair = LowRank(rng.normal(size=(3, 12)).astype(np.float32), rng.normal(size=(20, 3)).astype(np.float32))
    found = normalise_pair(pair)
    scaled = product(LowRank(found.pair.a, found.pair.b * (found.scales * np.float32(weight))))
    np.testing.assert_allclose(scaled, weight * product(pair), atol=1e-5 * max(abs(weight), 1e-3) * np.abs(product(pair)).max())
