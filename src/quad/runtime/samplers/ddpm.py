"""DDPM, the ancestral sampler of the training process itself.

    symbol           here              meaning
    abar, abar_prev  `abar, prev`      signal share before and after a step
    beta             `beta`            variance added between the two, 1 - abar / abar_prev
    mu               `mean`            mean of the posterior q(x_prev | x_t, x_0)

Source: Ho et al. 2020, Eqs. 6 and 7; numbers as diffusers' DDPMScheduler (`fixed_small`, `fixed_large`).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

from quad.runtime.samplers.contract import Call, Job, Route, preserving_route
from quad.runtime.samplers.schedule import Array
from quad.runtime.samplers.spacing import whole_timesteps


@dataclass(frozen=True)
class Ddpm:
    """Order 1, stochastic: draws one array for each step that adds noise, in their order."""

    job: Job
    route: Route

    def advance(self, call: Call) -> Array:
        """One step."""
        i = call.index
        abar, prev = self.route.abars[i], self.route.abars[i + 1]
        beta = 1.0 - abar / prev
        x0, _ = self.job.estimate(call, abar)
        mean = sqrt(prev) * beta / (1.0 - abar) * x0 + sqrt(1.0 - beta) * (1.0 - prev) / (1.0 - abar) * call.held
        variance = beta if self.job.settings.variance_type == "fixed_large" else (1.0 - prev) / (1.0 - abar) * beta
        if self.route.timesteps[i] == 0 or variance == 0.0:
            return mean
        return mean + sqrt(variance) * self.job.rng.standard_normal(call.held.shape)


def make_ddpm(job: Job) -> Ddpm:
    """The sampler of a job.

    Raises:
        UsageError: more steps than the schedule has, or none.
    """
    return Ddpm(job, preserving_route(job.schedule, whole_timesteps("ddpm", job.schedule, job.steps, job.settings)))
