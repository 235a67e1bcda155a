"""The noise schedule has diffusers' numbers, and ends in silence when it is asked to."""

from __future__ import annotations

import numpy as np
import pytest
from diffusers import DDIMScheduler, EulerDiscreteScheduler

from quad.core.errors import UnsupportedError
from quad.core.manifest import NoiseSchedule
from quad.core.sampling import SamplerSettings
from quad.runtime.samplers.schedule import alphas_cumprod, sigmas, whole_timesteps

# diffusers calls numpy on tensors in the old way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SCHEDULES = [
    NoiseSchedule(beta_schedule=kind, rescale_zero_snr=zero)
    for kind in ("linear", "scaled_linear", "squaredcos_cap_v2")
    for zero in (True, False)
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: f"{s.beta_schedule}-{s.rescale_zero_snr}")
def test_same_numbers_as_diffusers(lab, schedule):
    theirs = DDIMScheduler(**lab.config(schedule)).alphas_cumprod.numpy()
    np.testing.assert_allclose(alphas_cumprod(schedule), theirs, rtol=4e-5, atol=4e-7)
    np.testing.assert_allclose(np.sqrt(1 - alphas_cumprod(schedule)), np.sqrt(1 - theirs), atol=2e-5)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: f"{s.beta_schedule}-{s.rescale_zero_snr}")
def test_sigmas_as_diffusers_euler(lab, schedule):
    euler = EulerDiscreteScheduler(**lab.config(schedule))
    euler.set_timesteps(20)
    ours = sigmas(schedule)[whole_timesteps("ddim", schedule, 20, SamplerSettings())]
    np.testing.assert_allclose(ours, euler.sigmas.numpy()[:-1], rtol=1e-5, atol=3e-6)
    assert np.isfinite(sigmas(schedule)).all()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: f"{s.beta_schedule}-{s.rescale_zero_snr}")
def test_signal_only_falls_and_ends_at_zero_when_rescaled(schedule):
    abar = alphas_cumprod(schedule)
    assert abar.dtype == np.float64
    assert (np.diff(abar) < 0).all()
    assert abar[0] < 1
    assert (abar[-1] == 0.0) == schedule.rescale_zero_snr
    assert not abar.flags.writeable


def test_trailing_timesteps_for_every_number_of_steps(lab):
    schedule = NoiseSchedule()
    scheduler = DDIMScheduler(**lab.config(schedule))
    for steps in range(1, schedule.steps + 1):
        ours = whole_timesteps("ddim", schedule, steps, SamplerSettings())
        assert len(ours) == steps
        assert ours[0] == schedule.steps - 1
        assert ours[-1] >= 0
        assert (np.diff(ours) < 0).all()
        if steps <= 100:
            scheduler.set_timesteps(steps)
            assert ours == scheduler.timesteps.tolist()[:steps]


def test_unknown_or_empty_schedule_is_refused():
    with pytest.raises(UnsupportedError, match=r"noise schedule: expected linear, scaled_linear or squaredcos_cap_v2, found exp; "):
        alphas_cumprod(NoiseSchedule(beta_schedule="exp"))  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match=r"noise schedule: expected 2 or more steps, found 0; "):
        alphas_cumprod(NoiseSchedule(steps=0))
