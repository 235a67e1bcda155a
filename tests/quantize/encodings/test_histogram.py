"""Histograms grow without losing a count, in any order of arrival, and pool with equal weight."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from quad.quantize.encodings import histogram as histograms
from quad.quantize.encodings.histogram import Histogram, pool

CHUNKS = st.lists(hnp.arrays(np.float32, st.integers(1, 40), elements=st.floats(-1e6, 1e6, width=32)), min_size=1, max_size=6)


def filled(*chunks: np.ndarray, bins: int = 64) -> Histogram:
    histogram = Histogram(bins)
    for chunk in chunks:
        histogram.add(chunk)
    return histogram


@settings(max_examples=60, deadline=None)
@given(CHUNKS)
def test_growing_is_the_same_as_counting_at_once(chunks: list[np.ndarray]) -> None:
    histogram, everything = filled(*chunks), np.concatenate(chunks).astype(np.float64)
    width = 2.0**histogram.exponent
    expected = np.bincount((np.floor(everything / width) - histogram.origin).astype(int), minlength=histogram.bins)
    np.testing.assert_array_equal(histogram.counts, expected)
    assert (histogram.low, histogram.high, histogram.total) == (everything.min(), everything.max(), everything.size)


@settings(max_examples=60, deadline=None)
@given(CHUNKS, st.integers(0, 6))
def test_parts_that_are_merged_are_the_whole(chunks: list[np.ndarray], cut: int) -> None:
    histogram, everything = filled(*chunks[:cut]), np.concatenate(chunks).astype(np.float64)
    histogram.merge(filled(*chunks[cut:]))
    expected = np.bincount((np.floor(everything / 2.0**histogram.exponent) - histogram.origin).astype(int), minlength=histogram.bins)
    np.testing.assert_array_equal(histogram.counts, expected)
    assert (histogram.low, histogram.high, histogram.total) == (everything.min(), everything.max(), everything.size)


@settings(max_examples=40, deadline=None)
@given(CHUNKS)
def test_a_pool_of_parts_of_equal_size_is_the_pool_of_the_whole(chunks: list[np.ndarray]) -> None:
    parts = [np.resize(chunk, 30) for chunk in chunks]
    density = pool([filled(part) for part in parts])
    everything = np.concatenate(parts)
    assert density.mass.sum() == pytest.approx(1.0)
    assert min(density.low, 0.0) == min(everything.min(), 0.0)
    assert max(density.high, 0.0) == max(everything.max(), 0.0)


def test_fine_data_uses_most_of_the_bins() -> None:
    values = np.random.default_rng(0).normal(size=10_000).astype(np.float32) * 1e-5
    histogram = filled(values[:10], values[10:], bins=2048)
    assert (values.max() - values.min()) / 2.0**histogram.exponent >= 500


def test_every_source_has_the_same_weight_and_exact_zeros_have_none() -> None:
    many, few = filled(np.full(1000, 1.0, np.float32)), filled(np.full(10, -1.0, np.float32))
    density = pool([many, few, filled(np.zeros(50, np.float32))])
    assert density.mass.tolist() == [0.5, 0.5]
    assert pool([filled(np.zeros(50, np.float32))]).mass.tolist() == [1.0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="NaN or Inf"):
        filled(np.array([0.0, bad], dtype=np.float32))


def test_nothing_cannot_be_pooled() -> None:
    with pytest.raises(ValueError, match="no values"):
        pool([Histogram()])


@pytest.mark.parametrize("channels", [1, 64, 77, 320])
def test_a_large_array_is_estimated_within_and_counted_far_out(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(histograms, "_STRIDES", ((2**16, 13),))
    random = np.random.default_rng(channels)
    values = random.normal(size=(70_000 // channels + 1, channels)).astype(np.float32) * np.linspace(0.5, 1.5, channels, dtype=np.float32)
    values[-1, -1], values[0, 0] = 30.0, -25.0  # a few far out, as attention has them
    estimated, whole = Histogram(), Histogram()
    estimated.add(values)
    monkeypatch.setattr(histograms, "_STRIDES", ())
    whole.add(values)
    assert estimated.fields[:4] == whole.fields[:4]  # bins, and where values end
    assert estimated.total == estimated.counts.sum() == pytest.approx(whole.total, rel=0.01)
    centers = (np.arange(whole.bins) + whole.origin + 0.5) * 2.0**whole.exponent
    far = np.abs(centers) > 0.75 * 30.0 + 2.0**whole.exponent
    np.testing.assert_array_equal(estimated.counts[far], whole.counts[far])
    assert whole.counts[far].sum() == 2
    for one, other in ((estimated, whole), (whole, estimated)):
        assert np.cumsum(one.counts) / one.total == pytest.approx(np.cumsum(other.counts) / other.total, abs=0.02)
