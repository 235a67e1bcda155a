"""The laws of the adapter effect: it knows an equal, a scaled and a strange one apart."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quad.evaluate.figures.effect import Effect, effect_of, picture_effect

RNG = np.random.default_rng(0)
TRUE = [RNG.standard_normal((2, 4, 8, 8)).astype(np.float32), RNG.standard_normal((1, 4, 8, 8)).astype(np.float32)]


def _effect(found: list[np.ndarray]) -> Effect:
    effect = effect_of(TRUE, found)
    assert effect is not None
    return effect


def test_an_equal_effect_has_gain_one_and_loses_nothing() -> None:
    assert _effect(TRUE) == Effect(1.0, math.inf)


@given(st.floats(0.0, 4.0))
def test_a_scaled_effect_has_its_scale_as_gain(scale: float) -> None:
    effect = _effect([scale * one.astype(np.float64) for one in TRUE])
    assert effect.gain == pytest.approx(scale, abs=1e-12)
    if abs(scale - 1) > 1e-6:
        assert effect.sqnr_db == pytest.approx(-20 * math.log10(abs(scale - 1)), abs=1e-6)


def test_what_stands_upright_on_the_true_effect_does_not_change_the_gain() -> None:
    noise = RNG.standard_normal(TRUE[0].shape)
    noise -= (noise * TRUE[0]).sum() / (TRUE[0].astype(np.float64) ** 2).sum() * TRUE[0]
    effect = _effect([TRUE[0] + 0.1 * noise, TRUE[1]])
    assert effect.gain == pytest.approx(1.0, abs=1e-6)
    assert effect.sqnr_db < 25


def test_of_nothing_there_is_no_share() -> None:
    assert effect_of([np.zeros(3)], [np.ones(3)]) is None
    assert effect_of([], []) is None


def test_json_has_no_infinity() -> None:
    effect = Effect(1.0, math.inf)
    assert (effect.gain, effect.capped_db) == (1.0, 100.0)


def test_a_weak_adapter_shows_in_pictures_too() -> None:
    base = np.full((3, 8, 8, 3), 100, np.uint8)
    full, half = base + np.uint8(40), base + np.uint8(20)
    effect = picture_effect(full, base, half, base)
    assert effect is not None
    assert effect.gain == pytest.approx(0.5)
