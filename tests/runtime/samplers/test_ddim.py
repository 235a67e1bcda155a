"""DDIM: diffusers' numbers, order 1."""

from __future__ import annotations

import numpy as np
import pytest
from diffusers import DDIMScheduler

from quad.core.errors import UsageError
from quad.core.manifest import SamplerSpec
from quad.runtime.samplers import run_sampler

CASES = [("zero_snr", "v_prediction"), ("zero_snr", "sample"), ("stable_diffusion", "epsilon"), ("stable_diffusion", "v_prediction")]


@pytest.mark.parametrize("steps", [1, 4, 7, 20, 30])
@pytest.mark.parametrize(("name", "prediction"), CASES)
def test_every_step_is_diffusers_step(lab, name, prediction, steps):
    schedule = getattr(lab, name)(prediction)
    scheduler = DDIMScheduler(**lab.config(schedule), clip_sample=False)
    scheduler.set_timesteps(steps)
    walk = lab.walk_beside(scheduler, SamplerSpec(kind="ddim", steps=steps), schedule, [], lambda i: 1.0)
    assert walk.timesteps == scheduler.timesteps.tolist()
    # Seven steps of 142 end at t = 0 instead of before it, and there diffusers' float32 table is off (see schedule.py).
    tolerance = 1e-4 if steps == 7 and name == "zero_snr" else 1e-5
    for ours, theirs in zip(walk.ours, walk.theirs, strict=True):
        assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()


@pytest.mark.parametrize(("name", "prediction"), [("zero_snr", "v_prediction"), ("zero_snr", "sample"), ("cosine", "epsilon")])
def test_error_slope_is_the_order(lab, name, prediction):
    assert lab.slope("ddim", getattr(lab, name)(prediction)) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_steps_outside_the_schedule_are_refused(lab, steps):
    with pytest.raises(UsageError, match=rf"^sampler 'ddim': expected 1 to 1000 steps, found {steps}; [^\n]+$"):
        run_sampler(
            SamplerSpec(kind="ddim", steps=steps), lab.zero_snr("v_prediction"), lambda x, t: x, np.ones((1, 2)), np.random.default_rng(0)
        )
