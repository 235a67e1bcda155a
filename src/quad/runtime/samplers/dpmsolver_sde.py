"""DPM-Solver++ as a stochastic equation, two calls a step: an ancestral step to the middle, and again with the answer found there.

    symbol          here          meaning
    sigma           `sigma`       noise over signal, sqrt((1 - abar) / abar)
    sigma_m         `levels`      the middle of a step in log sigma, sqrt(sigma sigma_next)
    x               `step.state`  variance-exploding state
    D               `x0`          estimated clean latent
    sigma_up        `up`          deviation of the noise that a step to `target` adds
    sigma_down      `down`        where it goes before it adds noise, so that down^2 + up^2 = target^2
    W               `first`       Brownian path in sigma: both noises of a step are increments of one path

    x_target = (down / sigma) x + (1 - down / sigma) D + up (W(sigma) - W(target)) / sqrt(sigma - target)

Each step asks the network twice, the last, to sigma = 0, once. Calls 2k and 2k + 1 are step k; the second begins at the state of the first.
Source: Lu et al. 2023 (dpmsolver++), Algorithm 1 with its middle at a half, with the ancestral noise of Song et al. 2021, Eq. 16; known as
DPM++ SDE; numbers as diffusers' DPMSolverSDEScheduler.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import sqrt

import numpy as np

from quad.runtime.samplers.contract import SamplerSetup, SamplerStep, SamplingSchedule, sigma_schedule
from quad.runtime.samplers.schedule import Array, sigma_path, timesteps_at


@dataclass(kw_only=True)
class DpmSolverSde:
    """Order 1 in its noise, 2 without; draws one array for each call but the last, in their order, and keeps the step it is in.

    Args:
        levels: sigma before each call, and 0.
    """

    setup: SamplerSetup
    sampling: SamplingSchedule
    levels: tuple[float, ...]
    begun: list[Array] = field(default_factory=list)

    def advance(self, step: SamplerStep) -> Array:
        """One half of a step."""
        i = step.index
        x0, _ = self.setup.estimate(step, self.sampling.abars[i])
        if self.levels[i + 1] == 0.0:
            return x0
        drawn = self.setup.rng.standard_normal(step.state.shape)
        if i % 2 == 0:
            self.begun = [step.state, drawn]
            return _ancestral(step.state, x0, drawn, self.levels[i], self.levels[i + 1])
        x, first = self.begun
        sigma, middle, target = self.levels[i - 1 : i + 2]
        noise = (sqrt(sigma - middle) * first + sqrt(middle - target) * drawn) / sqrt(sigma - target)
        return _ancestral(x, x0, noise, sigma, target)


def _ancestral(x: Array, x0: Array, noise: Array, sigma: float, target: float) -> Array:
    up = target * sqrt(sigma**2 - target**2) / sigma
    down = sqrt(target**2 - up**2)
    return np.asarray(down / sigma * x + (1.0 - down / sigma) * x0 + up * noise)


def make_dpmsolver_sde(setup: SamplerSetup) -> DpmSolverSde:
    """The sampler of a setup.

    Raises:
        UsageError: more steps than the schedule has, or none.
    """
    timesteps, sigmas = sigma_path("dpmsolver-sde", setup.schedule, setup.steps, setup.settings)
    middles = np.sqrt(np.multiply(sigmas[:-2], sigmas[1:-1]))
    calls, levels = _interleaved(timesteps, timesteps_at(setup.schedule, middles)), _interleaved(sigmas[:-1], middles)
    sampling = sigma_schedule(calls, [*levels, 0.0], setup.settings, calls_per_step=2)
    return DpmSolverSde(setup=setup, sampling=sampling, levels=(*levels, 0.0))


def _interleaved(ends: Sequence[float], middles: Array) -> list[float]:
    """The ends of steps with their middles between them."""
    return [float(value) for pair in zip(ends, [*middles, None], strict=True) for value in pair if value is not None]
