"""Balancing changes no function; the zero adapter is integer zero; what cannot fit is refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from quad.core.errors import CompatibilityError, InputError
from quad.core.slots import SlotTable
from quad.lora.fit.integers import balance, dequantize_adapter, integer_slots, quantize_adapter
from quad.lora.fit.rescale import rescale
from quad.lora.read import FloatAdapter, LowRank
from quad.model.slots.layers import weights_of
from quad.quantize.profile.pooled_profile import UnifyOptions, unify


def product(pair: LowRank) -> np.ndarray:
    return pair.b.reshape(len(pair.b), -1).astype(np.float64) @ pair.a.reshape(len(pair.a), -1).astype(np.float64)


def test_balance_preserves_the_product_and_evens_the_ranges(tiny: Any) -> None:
    for adapter in tiny.adapters:
        balanced = balance(adapter)
        for path, pair in adapter.weights.items():
            after = balanced.weights[path]
            true = product(pair)
            np.testing.assert_allclose(product(after), true, rtol=0, atol=1e-6 * np.abs(true).max())
            assert np.abs(after.a).max() == pytest.approx(np.abs(after.b).max(), rel=1e-3)


def test_balancing_twice_is_balancing_once(tiny: Any) -> None:
    for adapter in tiny.adapters:
        once, twice = balance(adapter), balance(balance(adapter))
        for path, pair in once.weights.items():
            np.testing.assert_array_equal(pair.a, twice.weights[path].a)
            np.testing.assert_array_equal(pair.b, twice.weights[path].b)


def test_an_untrained_slot_becomes_nothing(make_adapter: Callable[..., FloatAdapter]) -> None:
    adapter = balance(make_adapter("fresh", 3, 2, (1.0, 0.0)))
    assert not any(pair.a.any() or pair.b.any() for pair in adapter.weights.values())


@pytest.mark.parametrize("bits", [16, 8])
def test_integers_have_the_slots_type_shape_and_exact_zeros(tiny: Any, bits: int) -> None:
    weights = {"unet": weights_of(tiny.network)}
    profile = unify(tiny.statistics, weights, tiny.table, tiny.adapters, UnifyOptions(lora_bits=bits))
    table: SlotTable = integer_slots(tiny.table, bits)
    for adapter in (*tiny.adapters, None):
        integers = quantize_adapter(adapter, table, profile)
        assert list(integers) == list(table.input_shapes())
        for slot in table.slots:
            for name, shape in ((slot.a_name, slot.a_shape), (slot.b_name, slot.b_shape)):
                assert (integers[name].dtype, integers[name].shape) == (np.dtype(slot.dtype), shape)
        values = dequantize_adapter(integers, table, profile)
        if adapter is None:
            assert not any(tensor.any() for tensor in integers.values())
            continue
        written = rescale(balance(adapter), table, profile)
        for slot in table.slots:
            assert not integers[slot.a_name][adapter.rank :].any()
            assert not integers[slot.b_name][:, adapter.rank :].any()
            step = profile.component("unet")[slot.a_name].scale[0]
            error = np.abs(values[slot.a_name][: adapter.rank] - written.weights[slot.path].a)
            assert error.max() <= step * 0.501


def test_balance_gives_a_faint_adapter_a_better_product(tiny: Any) -> None:
    """Unbalanced, the same shared range would leave the faint adapter's A a handful of the 8-bit levels."""
    profile = unify(tiny.statistics, {}, tiny.table, tiny.adapters, UnifyOptions(lora_bits=8))
    faint = tiny.adapters[0]
    values = dequantize_adapter(quantize_adapter(faint, tiny.table, profile), tiny.table, profile)
    for slot in tiny.table.slots:
        true = product(faint.weights[slot.path])
        error = product(LowRank(values[slot.a_name], values[slot.b_name])) - true
        largest = max(np.abs(adapter.weights[slot.path].a).max() for adapter in tiny.adapters)
        plain = np.rint(faint.weights[slot.path].a / (largest / 127)) * (largest / 127)
        plain_error = product(LowRank(plain, faint.weights[slot.path].b)) - true
        assert np.square(error).sum() < 0.1 * np.square(plain_error).sum()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_adapter_that_is_not_finite_is_refused(tiny: Any, bad: float) -> None:
    spoiled = {path: replace(pair, b=pair.b * np.float32(bad)) for path, pair in tiny.adapters[0].weights.items()}
    broken = replace(tiny.adapters[0], weights=spoiled)
    with pytest.raises(InputError, match=r"^adapter 'faint', .*: expected finite weights, found NaN or Inf; [^\n]+$"):
        quantize_adapter(broken, tiny.table, tiny.profile)
    with pytest.raises(InputError, match="NaN or Inf"):
        unify(tiny.statistics, {}, tiny.table, [broken])


def test_an_adapter_beyond_the_profile_is_refused_not_clipped(tiny: Any, make_adapter: Callable[..., FloatAdapter]) -> None:
    with pytest.raises(CompatibilityError, match=r"^adapter 'huge', .*lora_A: expected weights within [^\n]+$"):
        quantize_adapter(make_adapter("huge", 4, 2, (50.0, 50.0)), tiny.table, tiny.profile)


def test_a_profile_without_the_slot_is_refused(tiny: Any) -> None:
    with pytest.raises(CompatibilityError, match="expected an encoding of"):
        quantize_adapter(tiny.adapters[0], tiny.table, replace_encodings(tiny.profile))


def replace_encodings(profile: Any) -> Any:
    import msgspec

    return msgspec.structs.replace(profile, encodings={})
