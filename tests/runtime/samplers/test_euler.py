"""Euler: diffusers' numbers in its sigma space, order 1, finite at zero terminal SNR."""

from __future__ import annotations

import numpy as np
import pytest
from diffusers import EulerDiscreteScheduler

from quad.core.errors import UsageError
from quad.core.manifest import SamplerSpec
from quad.runtime.samplers import run_sampler

# diffusers calls numpy on tensors in the old way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

CASES = [
    ("zero_snr", "v_prediction"),
    ("zero_snr", "epsilon"),
    ("zero_snr", "sample"),
    ("stable_diffusion", "epsilon"),
    ("stable_diffusion", "v_prediction"),
]


@pytest.mark.parametrize("steps", [1, 4, 7, 20])
@pytest.mark.parametrize(("name", "prediction"), CASES)
def test_every_step_is_diffusers_step(lab, name, prediction, steps):
    schedule = getattr(lab, name)(prediction)
    scheduler = EulerDiscreteScheduler(**lab.config(schedule))
    scheduler.set_timesteps(steps)
    sigmas = scheduler.sigmas.double().numpy()
    # Our state is variance-preserving; only the very first is the caller's unit noise.
    scales = np.append(sigmas[0], np.sqrt(1.0 + sigmas[1:] ** 2))
    walk = lab.walk_beside(scheduler, SamplerSpec(kind="euler", steps=steps), schedule, [], lambda i: float(scales[i]))
    assert walk.timesteps == scheduler.timesteps.tolist()
    for i, (ours, theirs) in enumerate(zip(walk.ours, walk.theirs, strict=True)):
        # diffusers steps in float32, where it loses sigma_i / sigma_{i+1} times that rounding (sigma_0 is 4096 at zero terminal SNR).
        rounding = 2.0**-23 * scales[i] / scales[i + 1]
        assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max() + 4 * rounding


@pytest.mark.parametrize(("name", "prediction"), [("zero_snr", "v_prediction"), ("zero_snr", "sample"), ("cosine", "epsilon")])
def test_error_slope_is_the_order(lab, name, prediction):
    assert lab.slope("euler", getattr(lab, name)(prediction)) == pytest.approx(1.0, abs=0.1)


def test_network_sees_variance_preserving_states(lab):
    spreads = []

    def network(x, timestep):
        spreads.append(float(x.std()))
        return np.zeros_like(x)

    noise = np.random.default_rng(0).standard_normal((4, 4096))
    run_sampler(SamplerSpec(kind="euler", steps=8), lab.zero_snr("v_prediction"), network, noise, np.random.default_rng(0))
    assert spreads[0] == pytest.approx(1.0, abs=0.02)
    assert max(spreads) < 1.05


def test_euler_equals_ddim_where_both_are_exact_about_time(lab):
    schedule = lab.zero_snr("v_prediction")
    problem = lab.curved(schedule)
    noise = np.random.default_rng(1).standard_normal((4, 16))
    euler, ddim = (
        run_sampler(SamplerSpec(kind=kind, steps=20), schedule, problem, noise, np.random.default_rng(0)) for kind in ("euler", "ddim")
    )
    np.testing.assert_allclose(euler, ddim, atol=2e-3)  # the 2**-24 of signal that Euler keeps at the end


@pytest.mark.parametrize("steps", [0, 1001])
def test_steps_outside_the_schedule_are_refused(lab, steps):
    with pytest.raises(UsageError, match=rf"^sampler 'euler': expected 1 to 1000 steps, found {steps}; [^\n]+$"):
        run_sampler(
            SamplerSpec(kind="euler", steps=steps), lab.zero_snr("v_prediction"), lambda x, t: x, np.ones((1, 2)), np.random.default_rng(0)
        )
