"""LCM: diffusers' numbers and timesteps, fresh noise from the given generator only."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import LCMScheduler
from diffusers.schedulers import scheduling_lcm

from quad.core.errors import UnsupportedError, UsageError
from quad.core.manifest import NoiseSchedule, SamplerSpec
from quad.runtime.samplers import lcm_timesteps, run_sampler
from quad.runtime.samplers.lcm import boundary_scalings

CASES = [("zero_snr", "v_prediction"), ("zero_snr", "sample"), ("stable_diffusion", "epsilon"), ("stable_diffusion", "v_prediction")]


@pytest.mark.parametrize("steps", [1, 2, 4, 7, 8])
@pytest.mark.parametrize(("name", "prediction"), CASES)
def test_every_step_is_diffusers_step(lab, monkeypatch, name, prediction, steps):
    schedule = getattr(lab, name)(prediction)
    fresh = list(np.random.default_rng(5).standard_normal((steps - 1, 2, 4, 3, 3)))
    replay = iter(fresh)
    monkeypatch.setattr(scheduling_lcm, "randn_tensor", lambda *_, **__: torch.from_numpy(next(replay)))
    scheduler = LCMScheduler(**lab.config(schedule))
    scheduler.set_timesteps(steps)
    walk = lab.walk_beside(scheduler, SamplerSpec(kind="lcm", steps=steps), schedule, fresh, lambda i: 1.0)
    assert walk.timesteps == scheduler.timesteps.tolist()
    for ours, theirs in zip(walk.ours, walk.theirs, strict=True):
        assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()


def test_timesteps_are_diffusers_for_every_number_of_steps(lab):
    schedule = NoiseSchedule()
    scheduler = LCMScheduler(**lab.config(schedule))
    for steps in range(1, 51):
        scheduler.set_timesteps(steps)
        assert lcm_timesteps(schedule, steps) == scheduler.timesteps.tolist()


def test_boundary_is_the_identity():
    assert boundary_scalings(0) == (1.0, 0.0)


def test_same_generator_same_picture(lab):
    schedule = lab.zero_snr("v_prediction")
    problem = lab.curved(schedule)
    noise = np.random.default_rng(1).standard_normal((4, 16))
    first, second, other = (
        run_sampler(SamplerSpec(kind="lcm", steps=4), schedule, problem, noise, np.random.default_rng(s)) for s in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("steps", [0, 51])
def test_steps_beyond_the_grid_are_refused(lab, steps):
    with pytest.raises(UsageError, match=rf"^sampler 'lcm': expected 1 to 50 steps, found {steps}; [^\n]+$"):
        run_sampler(
            SamplerSpec(kind="lcm", steps=steps), lab.zero_snr("v_prediction"), lambda x, t: x, np.ones((1, 2)), np.random.default_rng(0)
        )


def test_epsilon_at_zero_terminal_snr_is_refused(lab):
    with pytest.raises(UnsupportedError, match="at zero terminal SNR"):
        run_sampler(SamplerSpec(kind="lcm", steps=4), lab.zero_snr("epsilon"), lambda x, t: x, np.ones((1, 2)), np.random.default_rng(0))
