"""Euler's method on the probability-flow equation dx/dsigma = (x - D(x, sigma)) / sigma (the paper's "ED"), plain and ancestral.

    symbol       here       meaning
    sigma        `sigma`    noise over signal, sqrt((1 - abar) / abar)
    x            `held`     variance-exploding state, x_t sqrt(1 + sigma^2), as the method wants it
    D            `x0`       estimated clean latent
    d            `d`        slope dx/dsigma
    sigma_down   `down`     where the ancestral step goes before it adds noise
    sigma_up     `up`       deviation of the noise it adds, so that down^2 + up^2 = sigma_next^2

Source: Karras et al. 2022, Algorithm 1 without the second-order correction; Song et al. 2021, Eq. 16 with eta = 1 (ancestral);
numbers as diffusers' EulerDiscreteScheduler and EulerAncestralDiscreteScheduler.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

from quad.runtime.samplers.contract import Call, Job, Route, sigma_route
from quad.runtime.samplers.schedule import Array
from quad.runtime.samplers.spacing import sigma_path


@dataclass(frozen=True)
class Euler:
    """Order 1; the ancestral one draws one array for each step but the last, in their order."""

    job: Job
    route: Route
    sigmas: tuple[float, ...]
    ancestral: bool

    def advance(self, call: Call) -> Array:
        """One step."""
        sigma, target = self.sigmas[call.index], self.sigmas[call.index + 1]
        x0, _ = self.job.estimate(call, self.route.abars[call.index])
        d = (call.held - x0) / sigma
        if not self.ancestral or target == 0.0:
            return call.held + d * (target - sigma)
        up = target * sqrt(sigma**2 - target**2) / sigma
        down = sqrt(target**2 - up**2)
        return call.held + d * (down - sigma) + up * self.job.rng.standard_normal(call.held.shape)


def _make(job: Job, ancestral: bool) -> Euler:
    timesteps, sigmas = sigma_path("euler-ancestral" if ancestral else "euler", job.schedule, job.steps, job.settings)
    return Euler(job, sigma_route(timesteps, sigmas, job.settings), tuple(sigmas), ancestral)


def make_euler(job: Job) -> Euler:
    """The deterministic sampler of a job.

    Raises:
        UsageError: more steps than the schedule has, or none.
    """
    return _make(job, ancestral=False)


def make_euler_ancestral(job: Job) -> Euler:
    """The sampler of a job that adds noise; errors as in `make_euler`."""
    return _make(job, ancestral=True)
