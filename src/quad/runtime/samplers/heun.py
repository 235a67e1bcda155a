"""Heun's method: an Euler step, and again with the mean of the slopes at its two ends.

    symbol    here       meaning
    sigma     `sigma`    noise over signal
    x         `step.state`     variance-exploding state
    d         `d`        slope dx/dsigma

Each step asks the network twice, the last, to sigma = 0, once. Calls 2k and 2k + 1 are step k.
Source: Karras et al. 2022, Algorithm 1; numbers as diffusers' HeunDiscreteScheduler.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from quad.runtime.samplers.contract import SamplerSetup, SamplerStep, SamplingSchedule, sigma_schedule
from quad.runtime.samplers.schedule import Array, sigma_path


@dataclass(kw_only=True)
class Heun:
    """Order 2, deterministic; keeps the state and slope of the step it is in."""

    setup: SamplerSetup
    sampling: SamplingSchedule
    sigmas: tuple[float, ...]
    begun: list[Array] = field(default_factory=list)

    def advance(self, step: SamplerStep) -> Array:
        """One half of a step."""
        i = step.index
        x0, _ = self.setup.estimate(step, self.sampling.abars[i])
        d = (step.state - x0) / self.sigmas[i]
        if i % 2 == 0:
            self.begun = [step.state, d]
            return step.state + d * (self.sigmas[i + 1] - self.sigmas[i])
        x, first = self.begun
        return x + (first + d) / 2.0 * (self.sigmas[i] - self.sigmas[i - 1])


def make_heun(setup: SamplerSetup) -> Heun:
    """The sampler of a setup.

    Raises:
        UsageError: more steps than the schedule has, or none.
    """
    timesteps, sigmas = sigma_path("heun", setup.schedule, setup.steps, setup.settings)
    calls = [timesteps[0], *(t for t in timesteps[1:] for _ in range(2))]
    levels = (sigmas[0], *(s for s in sigmas[1:-1] for _ in range(2)), sigmas[-1])
    return Heun(setup=setup, sampling=sigma_schedule(calls, levels, setup.settings, calls_per_step=2), sigmas=levels)
