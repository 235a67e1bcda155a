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

from quad.runtime.samplers.contract import SamplerSetup, SamplerStep, SamplingSchedule, preserving_schedule
from quad.runtime.samplers.schedule import Array, whole_timesteps


@dataclass(frozen=True)
class Ddpm:
    """Order 1, stochastic: draws one array for each step that adds noise, in their order."""

    setup: SamplerSetup
    sampling: SamplingSchedule

    def advance(self, step: SamplerStep) -> Array:
        """One step."""
        i = step.index
        abar, prev = self.sampling.abars[i], self.sampling.abars[i + 1]
        beta = 1.0 - abar / prev
        x0, _ = self.setup.estimate(step, abar)
        mean = sqrt(prev) * beta / (1.0 - abar) * x0 + sqrt(1.0 - beta) * (1.0 - prev) / (1.0 - abar) * step.state
        variance = beta if self.setup.settings.variance_type == "fixed_large" else (1.0 - prev) / (1.0 - abar) * beta
        if self.sampling.timesteps[i] == 0 or variance == 0.0:
            return mean
        return mean + sqrt(variance) * self.setup.rng.standard_normal(step.state.shape)


def make_ddpm(setup: SamplerSetup) -> Ddpm:
    """The sampler of a setup.

    Raises:
        UsageError: more steps than the schedule has, or none.
    """
    return Ddpm(setup, preserving_schedule(setup.schedule, whole_timesteps("ddpm", setup.schedule, setup.steps, setup.settings)))
