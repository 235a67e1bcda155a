"""Heun's method: an Euler step, and again with the mean of the slopes at its two ends.

    symbol    here       meaning
    sigma     `sigma`    noise over signal
    x         `held`     variance-exploding state
    d         `d`        slope dx/dsigma

Each step asks the network twice, the last, to sigma = 0, once. Calls 2k and 2k + 1 are step k.
Source: Karras et al. 2022, Algorithm 1; numbers as diffusers' HeunDiscreteScheduler.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from quad.runtime.samplers.contract import Call, Job, Route, sigma_route
from quad.runtime.samplers.schedule import Array
from quad.runtime.samplers.spacing import sigma_path


@dataclass
class Heun:
    """Order 2, deterministic; keeps the state and slope of the step it is in."""

    job: Job
    route: Route
    sigmas: tuple[float, ...]
    begun: list[Array] = field(default_factory=list)

    def advance(self, call: Call) -> Array:
        """One half of a step."""
        i = call.index
        x0, _ = self.job.estimate(call, self.route.abars[i])
        d = (call.held - x0) / self.sigmas[i]
        if i % 2 == 0:
            self.begun = [call.held, d]
            return call.held + d * (self.sigmas[i + 1] - self.sigmas[i])
        x, first = self.begun
        return x + (first + d) / 2.0 * (self.sigmas[i] - self.sigmas[i - 1])


def make_heun(job: Job) -> Heun:
    """The sampler of a job.

    Raises:
        UsageError: more steps than the schedule has, or none.
    """
    timesteps, sigmas = sigma_path("heun", job.schedule, job.steps, job.settings)
    asked = [timesteps[0], *(t for t in timesteps[1:] for _ in range(2))]
    levels = (sigmas[0], *(s for s in sigmas[1:-1] for _ in range(2)), sigmas[-1])
    return Heun(job, sigma_route(asked, levels, job.settings, calls_per_step=2), levels)
