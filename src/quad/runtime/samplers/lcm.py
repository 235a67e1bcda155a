"""Latent consistency sampling: jump to x_0, add fresh noise, jump again.

    symbol          here             meaning
    sigma_data      `SIGMA_DATA`     0.5
    c_skip, c_out   `c_skip, c_out`  s^2 / ((10 t)^2 + s^2) and 10 t / sqrt((10 t)^2 + s^2), s = sigma_data
    f(x_t, t)       `x0`             c_skip x_t + c_out x_0

Source: Luo et al. 2023, Eq. 9 and Algorithm 3; numbers and timesteps as diffusers' LCMScheduler.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np

from quad.core.manifest import NoiseSchedule
from quad.core.sampling import SamplerSettings
from quad.runtime.samplers.contract import SamplerSetup, SamplerStep, SamplingSchedule, preserving_schedule
from quad.runtime.samplers.schedule import Array, check_steps

SIGMA_DATA = 0.5
PLAIN = SamplerSettings()


def boundary_scalings(timestep: float, scaling: float = PLAIN.timestep_scaling) -> tuple[float, float]:
    """The pair (c_skip, c_out), which makes f the identity at t = 0."""
    scaled = timestep * scaling
    total = scaled**2 + SIGMA_DATA**2
    return SIGMA_DATA**2 / total, scaled / sqrt(total)


def lcm_timesteps(schedule: NoiseSchedule, steps: int, grid: int = PLAIN.original_inference_steps, sampler: str = "lcm") -> list[int]:
    """`steps` timesteps, falling, nearly evenly spaced on the distillation grid, starting at its last.

    Args:
        grid: timesteps that consistency distillation ran on; sampling visits some of these.
        sampler: the one that asks, for the message.

    Raises:
        UsageError: more steps than the grid has, or none.
    """
    size = min(grid, schedule.steps)
    check_steps(sampler, steps, size)
    stride = schedule.steps // size
    places = np.floor(np.linspace(0, size, num=steps, endpoint=False)).astype(int)
    return [int((size - place) * stride - 1) for place in places]


@dataclass(frozen=True)
class Lcm:
    """Stochastic: draws one array for each step but the last, in their order."""

    setup: SamplerSetup
    sampling: SamplingSchedule

    def advance(self, step: SamplerStep) -> Array:
        """One jump."""
        i = step.index
        c_skip, c_out = boundary_scalings(self.sampling.timesteps[i], self.setup.settings.timestep_scaling)
        x0, _ = self.setup.estimate(step, self.sampling.abars[i])
        x = c_skip * step.state + c_out * x0
        if i + 1 == len(self.sampling.timesteps):
            return x
        abar = self.sampling.abars[i + 1]
        return sqrt(abar) * x + sqrt(1.0 - abar) * self.setup.rng.standard_normal(x.shape)


def make_lcm(setup: SamplerSetup) -> Lcm:
    """The sampler of a setup.

    Raises:
        UsageError: more steps than the distillation grid has, or none.
    """
    return Lcm(
        setup, preserving_schedule(setup.schedule, lcm_timesteps(setup.schedule, setup.steps, setup.settings.original_inference_steps))
    )
