"""Ratios in decibels: one formula, its ends, and an adapter's effect."""

from __future__ import annotations

import math

import numpy as np
import pytest

from quad.core.decibels import CAP_DB, EffectEnergy, array_sqnr_db, floored_sqnr_db, gain_error, sqnr_db


def test_a_tenth_of_the_amplitude_is_twenty_decibels() -> None:
    assert sqnr_db(1.0, 0.01) == pytest.approx(20.0)
    assert array_sqnr_db(np.ones(8), np.full(8, 0.9)) == pytest.approx(20.0)


@pytest.mark.parametrize(("cap", "expected"), [(CAP_DB, 200.0), (100.0, 100.0), (math.inf, math.inf)])
def test_no_noise_gives_the_cap(cap: float, expected: float) -> None:
    assert sqnr_db(1.0, 0.0, cap) == expected
    assert sqnr_db(1.0, 1e-40, cap) == min(expected, 400.0)


def test_no_signal_is_finite() -> None:
    assert sqnr_db(0.0, 1.0) == -3000.0
    assert array_sqnr_db(np.zeros(4), np.ones(4)) == -300.0


def test_equal_arrays_have_a_finite_ratio_with_either_rule() -> None:
    y = np.full(4, 0.1)
    assert array_sqnr_db(y, y) == 200.0
    assert floored_sqnr_db(y, y) == pytest.approx(280.0)


def test_effects_of_several_calls_add_their_energies() -> None:
    parts = [EffectEnergy(true=1.0, cross=0.5, error=0.25), EffectEnergy(true=3.0, cross=1.5, error=0.75)]
    pooled = sum(parts, EffectEnergy())
    assert pooled == EffectEnergy(true=4.0, cross=2.0, error=1.0)
    assert pooled.gain == 0.5
    assert pooled.sqnr_db() == pytest.approx(10 * math.log10(4.0))


def test_the_error_of_a_gain_is_how_far_gains_of_other_runs_are_apart() -> None:
    """Runs of unlike energy, each with a gain of its own: over many draws of 32 runs the pooled gain scatters as the error says."""
    rng = np.random.default_rng(0)
    energies, gains = rng.exponential(size=(2000, 32)), rng.normal(0.98, 0.02, size=(2000, 32))
    draws = [[EffectEnergy(true=t, cross=g * t) for t, g in zip(*draw, strict=True)] for draw in zip(energies, gains, strict=True)]
    pooled = [sum(draw, EffectEnergy()).gain for draw in draws]
    assert np.median([gain_error(draw) for draw in draws]) == pytest.approx(np.std(pooled), rel=0.1)


def test_one_run_says_nothing_of_others() -> None:
    assert gain_error([EffectEnergy(true=1.0, cross=0.9)]) is None
    assert gain_error([EffectEnergy(), EffectEnergy()]) is None
    assert gain_error([EffectEnergy(true=1.0, cross=0.9), EffectEnergy(true=2.0, cross=1.8)]) == pytest.approx(0.0, abs=1e-12)
