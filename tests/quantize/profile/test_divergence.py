"""Both divergences against known numbers and their laws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quad.quantize.profile.divergence import exact_jsd, gaussian_jsd, histogram_js, paired_gaussian_js, split_half_floor

METHOD = {0.1: 0.0018, 0.5: 0.0437, 1.0: 0.161, 2.0: 0.486, 4.0: 0.913}  # docs/method.md section 4


@pytest.mark.parametrize(("d", "bits"), METHOD.items())
def test_the_numbers_of_the_method(d: float, bits: float) -> None:
    digits = 4 if bits < 0.1 else 3
    assert round(exact_jsd(d), digits) == bits
    assert float(gaussian_jsd(np.array(d))) == pytest.approx(exact_jsd(d), rel=1e-6)


@given(st.floats(0.02, 40.0))
def test_the_table_is_the_integral(d: float) -> None:
    assert float(gaussian_jsd(np.array(d))) == pytest.approx(exact_jsd(d), rel=1e-5, abs=1e-9)


def test_it_is_quadratic_near_zero_grows_and_ends_at_one_bit() -> None:
    assert float(gaussian_jsd(np.array(1e-4))) == pytest.approx(1e-8 / (8 * np.log(2)), rel=1e-6)
    values = gaussian_jsd(np.linspace(0, 30, 2000))
    assert values[0] == 0.0
    assert (np.diff(values) > -1e-6).all()
    assert values[-1] == pytest.approx(1.0, abs=1e-9)
    assert values.max() <= 1.0


def test_only_the_paired_form_sees_position() -> None:
    rng = np.random.default_rng(0)
    y = rng.standard_normal((4, 64, 64))
    shuffled = rng.permutation(y.ravel()).reshape(y.shape)
    assert histogram_js(y, shuffled) == 0.0
    assert paired_gaussian_js(y, shuffled, 1.0) > 0.1
    assert paired_gaussian_js(y, y, 0.1) == 0.0


def test_less_noise_makes_the_same_error_worse() -> None:
    y = np.zeros((8, 8))
    assert paired_gaussian_js(y, y + 0.1, 0.2) == pytest.approx(METHOD[0.5], abs=5e-5)
    assert paired_gaussian_js(y, y + 0.1, 1.0) < paired_gaussian_js(y, y + 0.1, 0.2)


def test_histograms_of_one_distribution_differ_by_about_the_floor() -> None:
    rng = np.random.default_rng(1)
    y, other = rng.standard_normal((2, 16_384))
    floor = split_half_floor(y)
    assert 0 < floor < 0.01
    assert histogram_js(y, other) < floor
    assert histogram_js(y, y + 1.0) > 10 * floor
    assert histogram_js(y, y + 100.0) == pytest.approx(1.0)
    assert histogram_js(np.zeros(4), np.zeros(4)) == 0.0
