"""Trajectory consistency sampling: jump past the next timestep along the trajectory, then add noise up to it.

    symbol      here             meaning
    gamma       `settings.eta`   share of noise in a step: 0 is deterministic, 1 begins anew at each
    t, t_n      `timesteps`      timestep of a step, and of the next; 0 after the last
    s           `passed`         timestep that is jumped to, floor((1 - gamma) t_n)
    abar_s      `abar_s`         signal share there

    x_s = sqrt(abar_s) x_0 + sqrt(1 - abar_s) eps
    x_next = sqrt(abar_n / abar_s) x_s + sqrt(1 - abar_n / abar_s) z, but for the last step, which ends at x_s

Source: Zheng et al. 2024 (arXiv 2402.19159), section 4.3 and Algorithm 4; numbers and timesteps as diffusers' TCDScheduler.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import floor, sqrt

import numpy as np

from quad.core.errors import UsageError, mismatch
from quad.runtime.samplers.contract import SamplerSetup, SamplerStep, SamplingSchedule, preserving_schedule, split_output
from quad.runtime.samplers.lcm import lcm_timesteps
from quad.runtime.samplers.schedule import Array, alphas_cumprod


@dataclass(frozen=True)
class Tcd:
    """Stochastic unless gamma is 0: draws one array for each step but the last, in their order; `jumps` holds abar_s of each step."""

    setup: SamplerSetup
    sampling: SamplingSchedule
    jumps: tuple[float, ...]

    def advance(self, step: SamplerStep) -> Array:
        """One jump; the estimated clean latent is never clipped."""
        i, abar_s = step.index, self.jumps[step.index]
        x0, eps = split_output(self.setup.schedule.prediction, step.output, step.x_t, self.sampling.abars[i])
        x = sqrt(abar_s) * x0 + sqrt(1.0 - abar_s) * eps
        if i + 1 == len(self.sampling.timesteps) or self.setup.settings.eta == 0.0:
            return x
        kept = self.sampling.abars[i + 1] / abar_s
        return sqrt(kept) * x + sqrt(1.0 - kept) * self.setup.rng.standard_normal(x.shape)


def make_tcd(setup: SamplerSetup) -> Tcd:
    """The sampler of a setup.

    Raises:
        UsageError: more steps than the distillation grid has, or none, or a gamma outside 0 to 1.
    """
    eta, alphas = setup.settings.eta, alphas_cumprod(setup.schedule)
    if not 0.0 <= eta <= 1.0:
        raise UsageError(mismatch("sampler 'tcd'", "eta from 0 to 1", eta, "choose one in that range"))
    timesteps = lcm_timesteps(setup.schedule, setup.steps, setup.settings.original_inference_steps, sampler="tcd")
    # In single precision, as diffusers: a product that is nearly whole is taken for whole.
    passed = [floor(np.float32(1.0 - eta) * np.float32(t)) for t in (*timesteps[1:], 0)]
    return Tcd(setup, preserving_schedule(setup.schedule, timesteps), tuple(float(alphas[s]) for s in passed))
