"""Free alignment: the function stays, what the lattice does to it gets smaller, and nothing leaves its range (docs/method.md section 3)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quad.core.encoding import Encoding, encode_range
from quad.core.margins import SLOT_B
from quad.lora.fit.integers import balance
from quad.lora.fit.rescale import balance_pair, rescale, rescale_pair
from quad.lora.read import LowRank
from quad.quantize.profile.pooled_profile import UnifyOptions, unify

SHAPES = (((12,), (20,)), ((6, 3, 3), (10, 1, 1)))


def draw(seed: int, rank: int, shape: int, spread: float) -> LowRank:
    """Factors whose channels differ in size by `exp(spread)` standard deviations."""
    rng = np.random.default_rng(seed)
    down, (out, *kernel) = SHAPES[shape]
    sizes = np.exp(spread * rng.normal(size=(2, rank)))
    a = rng.normal(size=(rank, *down)) * sizes[0].reshape(-1, *(1,) * len(down))
    b = rng.normal(size=(out, rank, *kernel)) * sizes[1].reshape(1, -1, *(1,) * len(kernel))
    return LowRank(a.astype(np.float32), b.astype(np.float32))


def product(pair: LowRank) -> np.ndarray:
    return pair.b.reshape(len(pair.b), -1).astype(np.float64) @ pair.a.reshape(len(pair.a), -1).astype(np.float64)


def written(pair: LowRank, encodings: tuple[Encoding, Encoding]) -> LowRank:
    return LowRank(*(one.dequantize(one.quantize(x)) for one, x in zip(encodings, (pair.a, pair.b), strict=True)))


def damage(pair: LowRank, encodings: tuple[Encoding, Encoding]) -> float:
    return float(np.square(product(written(pair, encodings)) - product(pair)).sum())


def encodings_for(pair: LowRank, bits: int, room: float) -> tuple[Encoding, Encoding]:
    """Ranges `room` times as wide as the pair needs, as another adapter would have set them."""
    bounds = (room * float(np.abs(x).max()) for x in (pair.a, pair.b))
    a, b = (encode_range(-bound, bound, bits=bits, signed=True, symmetric=True) for bound in bounds)
    return a, b


PAIRS = st.builds(draw, st.integers(0, 10_000), st.integers(1, 6), st.sampled_from((0, 1)), st.floats(0.0, 2.0))


@given(PAIRS)
def test_evening_changes_the_factors_and_not_the_product(pair: LowRank) -> None:
    even, true = balance_pair(pair), product(pair)
    np.testing.assert_allclose(product(even), true, rtol=0, atol=2e-6 * np.abs(true).max())
    assert (even.a.shape, even.b.shape) == (pair.a.shape, pair.b.shape)
    assert np.abs(even.a).max() == pytest.approx(np.abs(even.b).max(), rel=1e-3)


@given(PAIRS, st.sampled_from((8, 16)), st.floats(1.0, 8.0))
def test_aligning_keeps_the_product_and_the_range_and_never_costs(pair: LowRank, bits: int, room: float) -> None:
    even = balance_pair(pair)
    encodings = encodings_for(even, bits, room)
    fitted, true = rescale_pair(even, *encodings), product(even)
    np.testing.assert_allclose(product(fitted), true, rtol=0, atol=2e-6 * np.abs(true).max())
    for values, encoding in zip((fitted.a, fitted.b), encodings, strict=True):
        assert np.abs(values).max() <= encoding.scale[0] * encoding.qmax * (1 + 1e-5)
    assert damage(fitted, encodings) <= damage(even, encodings) * (1 + 1e-9)


@given(PAIRS, st.floats(1.0, 8.0))
def test_rows_of_a_stay_within_the_room_of_a_x(pair: LowRank, room: float) -> None:
    """The range of A x was observed with the even form: no row may become much longer than its longest."""
    even = balance_pair(pair)
    fitted = rescale_pair(even, *encodings_for(even, 8, room))
    longest = [float(np.linalg.norm(x.a.reshape(len(x.a), -1), axis=1).max()) for x in (even, fitted)]
    assert longest[1] <= longest[0] * 2**0.5 * (1 + 1e-5)


def test_channels_of_different_size_round_better_evened_and_better_still_aligned() -> None:
    """Free of cost: evening is worth more than a bit of one factor (6 dB), aligning to ranges that others set a little more."""
    evening, aligning = [], []
    for seed in range(20):
        raw = draw(seed, 4, 0, 1.0)
        even = balance_pair(raw)
        wide = encodings_for(even, 8, 4.0)
        evening.append(damage(raw, encodings_for(raw, 8, 1.0)) / damage(even, encodings_for(even, 8, 1.0)))
        aligning.append(damage(even, wide) / damage(rescale_pair(even, *wide), wide))
    assert np.median(evening) > 4.0
    assert np.median(aligning) > 1.2


def test_a_slot_without_effect_stays_without(tiny: Any) -> None:
    zero = LowRank(np.zeros((2, 12), np.float32), np.ones((20, 2), np.float32))
    even = balance_pair(zero)
    assert not even.a.any()
    assert not even.b.any()
    assert rescale_pair(even, *encodings_for(draw(0, 2, 0, 0.0), 8, 1.0)) is even


def test_align_touches_what_has_encodings_and_nothing_else(tiny: Any) -> None:
    profile = unify(tiny.statistics, {}, tiny.table, tiny.adapters, UnifyOptions(lora_bits=8))
    adapter = balance(tiny.adapters[0])
    assert {path for path, pair in rescale(adapter, tiny.table, profile).weights.items() if pair is adapter.weights[path]} == set()
    unprofiled = rescale(adapter, type(tiny.table)(()), profile)
    assert all(pair is adapter.weights[path] for path, pair in unprofiled.weights.items())


@given(PAIRS, st.floats(1.0, 8.0))
def test_the_room_of_b_is_left_to_weights(pair: LowRank, wider: float) -> None:
    """The profile made B's range `SLOT_B` times as wide as any adapter needs: alignment must not spend it."""
    even = balance_pair(pair)
    a, _ = encodings_for(even, 16, wider)
    _, b = encodings_for(even, 16, wider * SLOT_B[16].factor)
    assert np.abs(rescale_pair(even, a, b).b).max() <= wider * np.abs(even.b).max() * (1 + 1e-5)
