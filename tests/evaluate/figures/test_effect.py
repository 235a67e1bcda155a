"""The laws of the adapter effect: it knows an equal, a scaled and a strange one apart."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quad.evaluate.figures.effect import Effect, calls_in_turns, effect_of, picture_effect
from quad.quantize.observe.probes import Probe

RNG = np.random.default_rng(0)
TRUE = [RNG.standard_normal((2, 4, 8, 8)).astype(np.float32), RNG.standard_normal((1, 4, 8, 8)).astype(np.float32)]


def _effect(found: list[np.ndarray]) -> Effect:
    effect = effect_of(TRUE, found)
    assert effect is not None
    return effect


def test_an_equal_effect_has_gain_one_and_loses_nothing() -> None:
    assert _effect(TRUE) == Effect(1.0, math.inf, gain_error=0.0)


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


def test_calls_of_one_run_are_no_evidence_of_their_own() -> None:
    """A run's calls are alike, so the same calls again make the gain no more certain; more runs do."""
    weak, strong = [one * np.float32(0.9) for one in TRUE], [one * np.float32(1.1) for one in TRUE]
    two = effect_of(TRUE * 2, [*weak, *strong], [0, 0, 1, 1])
    twice = effect_of(TRUE * 4, [*weak, *weak, *strong, *strong], [0] * 4 + [1] * 4)
    four = effect_of(TRUE * 4, [*weak, *strong] * 2, [0, 0, 1, 1, 2, 2, 3, 3])
    assert two is not None
    assert twice is not None
    assert four is not None
    assert two.gain_error == pytest.approx(0.1, abs=1e-6)
    assert twice.gain_error == pytest.approx(two.gain_error)
    assert four.gain_error == pytest.approx(0.1 / math.sqrt(3))
    one = effect_of(TRUE, weak, [0, 0])
    assert one is not None
    assert one.gain_error is None


@pytest.mark.parametrize("steps", [1, 3, 4, 7, 8])
def test_runs_show_all_their_timesteps_alike(steps: int) -> None:
    runs = 4 * steps
    probes = [_probe(run, step) for run in range(runs) for step in range(steps)]
    taken = calls_in_turns(probes, 2)
    of_run = Counter(probe.run for probe in taken)
    assert of_run.keys() == set(range(runs))
    assert max(of_run.values()) <= 2
    of_step = Counter(probe.sigma_t for probe in taken)
    assert len(of_step) == steps
    assert max(of_step.values()) - min(of_step.values()) <= 1
    assert taken == sorted(taken, key=lambda probe: (probe.run, probe.sigma_t))


def _probe(run: int, step: int) -> Probe:
    return Probe(source="a", task="t", run=run, inputs={}, sigma_t=float(step))


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
