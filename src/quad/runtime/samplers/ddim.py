"""DDIM without added noise (eta = 0): the teacher's sampler.

    symbol    here         meaning
    abar_t    `abar`       share of signal variance left at t
    x_0, eps  `x0, eps`    estimates at x_t

    x_prev = sqrt(abar_prev) x_0 + sqrt(1 - abar_prev) eps

Source: Song et al. 2021, Eq. 12 with sigma = 0; numbers as diffusers' DDIMScheduler.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

from quad.runtime.samplers.contract import SamplerSetup, SamplerStep, SamplingSchedule, preserving_schedule
from quad.runtime.samplers.schedule import Array, alphas_cumprod, whole_timesteps


@dataclass(frozen=True)
class Ddim:
    """Order 1, deterministic; `ends` holds the signal share that each step leads to."""

    setup: SamplerSetup
    sampling: SamplingSchedule
    ends: tuple[float, ...]

    def advance(self, step: SamplerStep) -> Array:
        """One step."""
        x0, eps = self.setup.estimate(step, self.sampling.abars[step.index])
        abar = self.ends[step.index]
        return sqrt(abar) * x0 + sqrt(1.0 - abar) * eps


def last_abar(setup: SamplerSetup) -> float:
    """The signal share where ddim and pndm end."""
    return 1.0 if setup.settings.set_alpha_to_one else float(alphas_cumprod(setup.schedule)[0])


def make_ddim(setup: SamplerSetup) -> Ddim:
    """The sampler of a setup.

    Raises:
        UsageError: more steps than the schedule has, or none.
    """
    timesteps = whole_timesteps("ddim", setup.schedule, setup.steps, setup.settings)
    alphas = alphas_cumprod(setup.schedule)
    # As diffusers: the step is the whole number of training steps, also where the spacing is not whole.
    stride = setup.schedule.steps // setup.steps
    ends = tuple(float(alphas[t - stride]) if t >= stride else last_abar(setup) for t in timesteps)
    return Ddim(setup, preserving_schedule(setup.schedule, timesteps), ends)
