"""Euler's method on the probability-flow equation dx/dsigma = (x - D(x, sigma)) / sigma (the paper's "ED"), plain and ancestral.

    symbol       here       meaning
    sigma        `sigma`    noise over signal, sqrt((1 - abar) / abar)
    x            `step.state`     variance-exploding state, x_t sqrt(1 + sigma^2), as the method wants it
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

from quad.runtime.samplers.contract import SamplerSetup, SamplerStep, SamplingSchedule, sigma_schedule
from quad.runtime.samplers.schedule import Array, sigma_path


@dataclass(frozen=True, kw_only=True)
class Euler:
    """Order 1; the ancestral one draws one array for each step but the last, in their order."""

    setup: SamplerSetup
    sampling: SamplingSchedule
    sigmas: tuple[float, ...]
    ancestral: bool

    def advance(self, step: SamplerStep) -> Array:
        """One step."""
        sigma, target = self.sigmas[step.index], self.sigmas[step.index + 1]
        x0, _ = self.setup.estimate(step, self.sampling.abars[step.index])
        d = (step.state - x0) / sigma
        if not self.ancestral or target == 0.0:
            return step.state + d * (target - sigma)
        up = target * sqrt(sigma**2 - target**2) / sigma
        down = sqrt(target**2 - up**2)
        return step.state + d * (down - sigma) + up * self.setup.rng.standard_normal(step.state.shape)


def _make(setup: SamplerSetup, ancestral: bool) -> Euler:
    timesteps, sigmas = sigma_path("euler-ancestral" if ancestral else "euler", setup.schedule, setup.steps, setup.settings)
    return Euler(setup=setup, sampling=sigma_schedule(timesteps, sigmas, setup.settings), sigmas=tuple(sigmas), ancestral=ancestral)


def make_euler(setup: SamplerSetup) -> Euler:
    """The deterministic sampler of a setup.

    Raises:
        UsageError: more steps than the schedule has, or none.
    """
    return _make(setup, ancestral=False)


def make_euler_ancestral(setup: SamplerSetup) -> Euler:
    """The sampler of a setup that adds noise; errors as in `make_euler`."""
    return _make(setup, ancestral=True)
