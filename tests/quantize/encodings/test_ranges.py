"""Range choice: bounds hold the data where they should, least error is least, weights keep law 5."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quad.core.encoding import encode_range
from quad.core.margins import Margin
from quad.quantize.encodings import ranges
from quad.quantize.encodings.histogram import Density, Histogram, pool
from quad.quantize.encodings.ranges import RangeOptions, choose_range, column_encoding, expected_error, weight_encoding


def density_of(values: np.ndarray) -> Density:
    histogram = Histogram()
    histogram.add(values)
    return pool([histogram])


def real_error(values: np.ndarray, bounds: tuple[float, float], bits: int, p: float) -> float:
    encoding = encode_range(*bounds, bits=bits, signed=False, symmetric=False)
    return float((np.abs(encoding.dequantize(encoding.quantize(values)) - values).astype(np.float64) ** p).mean())


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(-3.0, 3.0), st.sampled_from([8, 16]))
def test_minmax_holds_every_value_and_zero(seed: int, shift: float, bits: int) -> None:
    values = (np.random.default_rng(seed).normal(size=500) + shift).astype(np.float32)
    low, high = choose_range(density_of(values), bits, RangeOptions(method="minmax", margin=Margin(0.0)))
    assert low <= min(values.min(), 0.0)
    assert high >= max(values.max(), 0.0)


def test_headroom_widens_16_bits_only() -> None:
    values = np.array([-1.0, 2.0], dtype=np.float32)
    assert choose_range(density_of(values), 16, RangeOptions(method="minmax", margin=Margin(0.5))) == (-1.5, 3.0)
    assert choose_range(density_of(values), 8, RangeOptions(method="minmax", margin=Margin(0.5))) == (-1.0, 2.0)


@pytest.mark.parametrize("heavy", [False, True])
def test_search_beats_minmax_at_8_bits_on_real_integers(heavy: bool) -> None:
    rng = np.random.default_rng(1)
    values = (rng.standard_t(4, size=20_000) if heavy else np.maximum(rng.normal(size=20_000), -0.2)).astype(np.float32)
    density, options = density_of(values), RangeOptions()
    searched = real_error(values, choose_range(density, 8, options), 8, options.p)
    plain = real_error(values, choose_range(density, 8, RangeOptions(method="minmax")), 8, options.p)
    assert searched <= plain
    assert not heavy or searched < plain


def test_expected_error_is_the_real_one() -> None:
    values = np.random.default_rng(2).normal(size=50_000).astype(np.float32)
    for bounds in ((-4.0, 4.0), (-2.0, 2.5)):
        assert expected_error(density_of(values), bounds, 8, 2.4) == pytest.approx(real_error(values, bounds, 8, 2.4), rel=0.05)


def test_16_bits_do_not_clip_for_a_finer_step() -> None:
    values = np.random.default_rng(3).normal(size=20_000).astype(np.float32)
    low, high = choose_range(density_of(values), 16, RangeOptions())
    assert low <= values.min()
    assert high >= values.max()


def test_percentile_leaves_out_the_rare_ones() -> None:
    values = np.concatenate([np.random.default_rng(4).uniform(-1, 1, 100_000), [50.0]]).astype(np.float32)
    low, high = choose_range(density_of(values), 8, RangeOptions(method="percentile", percentile=99.9))
    assert -1.1 < low < -0.9
    assert 0.9 < high < 1.1


def test_a_table_is_within_half_a_step_of_its_columns_and_none_is_clipped() -> None:
    """Columns of sizes that differ ten thousand times, one of them of zeros."""
    rng = np.random.default_rng(6)
    table = (rng.normal(size=(50, 8)) * 10.0 ** rng.uniform(-3, 1, 8)).astype(np.float32)
    table[:, 3] = 0.0
    encoding = column_encoding(table)
    step = np.asarray(encoding.scale, np.float32)
    assert (np.abs(encoding.dequantize(encoding.quantize(table)) - table) <= 0.5001 * step).all()
    assert (encoding.bits, encoding.axis, encoding.symmetric) == (8, 1, True)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("method", ["mse", "minmax"])
def test_weights_are_per_channel_and_within_half_a_step(bits: int, method: str) -> None:
    rng = np.random.default_rng(5)
    weight = (rng.normal(size=(6, 4, 3, 3)) * 10.0 ** rng.uniform(-3, 1, (6, 1, 1, 1))).astype(np.float32)
    weight[2] = 0.0
    encoding = weight_encoding(weight, bits, RangeOptions(method=method))  # type: ignore[arg-type]
    integers = encoding.quantize(weight)
    scale, _ = encoding.broadcast(4)
    inside = np.abs(integers.astype(int)) < encoding.qmax
    error = np.abs(encoding.dequantize(integers) - weight)
    assert (encoding.axis, len(encoding.scale), encoding.symmetric) == (0, 6, True)
    assert (error <= scale * 0.5001 + np.abs(weight) * 2.0**-22)[inside].all()
    assert not integers[2].any()


def test_weight_search_never_loses_to_the_largest_magnitude() -> None:
    weight = np.random.default_rng(6).standard_t(3, size=(8, 256)).astype(np.float32)
    errors = []
    for method in ("mse", "minmax"):
        encoding = weight_encoding(weight, 8, RangeOptions(method=method))  # type: ignore[arg-type]
        errors.append((np.abs(encoding.dequantize(encoding.quantize(weight)) - weight).astype(np.float64) ** 2.4).sum(axis=1))
    assert (errors[0] <= errors[1] * (1 + 1e-6)).all()


def test_a_weight_is_encoded_alike_however_many_values_are_tried_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = np.random.default_rng(7).standard_t(3, size=(9, 40, 3)).astype(np.float32)
    encodings = []
    for together in (1, 300, 2**16):
        monkeypatch.setattr(ranges, "_TOGETHER", together)
        encodings.append(weight_encoding(weight, 8, RangeOptions()))
    assert encodings[0] == encodings[1] == encodings[2]
