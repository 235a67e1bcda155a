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

from quad.runtime.samplers.contract import Call, Job, Route, preserving_route
from quad.runtime.samplers.schedule import Array, alphas_cumprod
from quad.runtime.samplers.spacing import whole_timesteps


@dataclass(frozen=True)
class Ddim:
    """Order 1, deterministic; `ends` holds the signal share that each step leads to."""

    job: Job
    route: Route
    ends: tuple[float, ...]

    def advance(self, call: Call) -> Array:
        """One step."""
        x0, eps = self.job.estimate(call, self.route.abars[call.index])
        abar = self.ends[call.index]
        return sqrt(abar) * x0 + sqrt(1.0 - abar) * eps


def last_abar(job: Job) -> float:
    """The signal share where ddim and pndm end."""
    return 1.0 if job.settings.set_alpha_to_one else float(alphas_cumprod(job.schedule)[0])


def make_ddim(job: Job) -> Ddim:
    """The sampler of a job.

    Raises:
        UsageError: more steps than the schedule has, or none.
    """
    timesteps = whole_timesteps("ddim", job.schedule, job.steps, job.settings)
    alphas = alphas_cumprod(job.schedule)
    # As diffusers: the step is the whole number of training steps, also where the spacing is not whole.
    stride = job.schedule.steps // job.steps
    ends = tuple(float(alphas[t - stride]) if t >= stride else last_abar(job) for t in timesteps)
    return Ddim(job, preserving_route(job.schedule, timesteps), ends)
