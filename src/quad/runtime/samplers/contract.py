"""The one shape of all samplers: a route of network calls, and what a sampler does with each answer.

    symbol   here       meaning
    x_t      `seen`     variance-preserving state, sqrt(abar) x_0 + sqrt(1 - abar) eps: what network and caller see
    x        `held`     the state a sampler computes with: `seen` times the route's scale
    abar     `abars`    share of signal variance left
    sigma    `sigma`    noise over signal, sqrt((1 - abar) / abar)

Samplers in sigma space hold x = x_0 + sigma eps = x_t sqrt(1 + sigma^2); the others hold x_t itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Protocol

import numpy as np

from quad.core.manifest import NoiseSchedule
from quad.core.sampling import SamplerSettings
from quad.runtime.samplers.denoiser import split_output
from quad.runtime.samplers.schedule import Array, alphas_cumprod


@dataclass(frozen=True)
class Route:
    """Where the network is asked, and how noisy the state is there.

    Args:
        timesteps: one per network call.
        abars: signal share of the state before each call, and 1 after the last: n + 1 entries.
        scales: held over seen state, at the same places; 1 after the last, where the held state is the picture.
        unit: what unit noise is multiplied with to be the first held state.
        calls_per_step: 2 where a step asks twice; image-to-image begins at a whole step.
        whole: it has to be taken from its beginning.
    """

    timesteps: tuple[float, ...]
    abars: tuple[float, ...]
    scales: tuple[float, ...]
    unit: float = 1.0
    calls_per_step: int = 1
    whole: bool = False


@dataclass(frozen=True)
class Call:
    """One answer of the network: call `index` of the route, the states before it, and the raw output; float64, one shape."""

    index: int
    held: Array
    seen: Array
    output: Array


class Sampler(Protocol):
    """A method along its route; one object serves one run, and may keep what it saw."""

    @property
    def route(self) -> Route:
        """Where it asks."""

    def advance(self, call: Call) -> Array:
        """The held state that this answer leads to."""


@dataclass(frozen=True)
class Job:
    """What a sampler is made for: the base's schedule, steps and settings, and the generator of fresh noise."""

    schedule: NoiseSchedule
    steps: int
    settings: SamplerSettings
    rng: np.random.Generator

    def estimate(self, call: Call, abar: float) -> tuple[Array, Array]:
        """The pair (x_0, eps) that an answer means; the settings may clip x_0, which leaves eps as it is."""
        x0, eps = split_output(self.schedule.prediction, call.output, call.seen, abar)
        limit = self.settings.clip_sample_range
        return (x0 if limit is None else np.clip(x0, -limit, limit)), eps


def preserving_route(schedule: NoiseSchedule, timesteps: Sequence[float]) -> Route:
    """The route of a sampler that holds x_t itself, at whole timesteps."""
    alphas = alphas_cumprod(schedule)
    abars = (*(float(alphas[round(t)]) for t in timesteps), 1.0)
    return Route(tuple(timesteps), abars, (1.0,) * len(abars))


def sigma_route(timesteps: Sequence[float], sigmas: Sequence[float], settings: SamplerSettings, calls_per_step: int = 1) -> Route:
    """The route of a sampler that holds x_0 + sigma eps, from its noise levels (one more than timesteps)."""
    scales = (*(sqrt(1.0 + sigma**2) for sigma in sigmas[:-1]), 1.0)
    # As diffusers: where the last training timestep is not sure to be visited, unit noise is x_t, else it is eps.
    unit = scales[0] if settings.timestep_spacing == "leading" else sigmas[0]
    return Route(tuple(timesteps), _abars(sigmas), scales, unit, calls_per_step)


def _abars(sigmas: Sequence[float]) -> tuple[float, ...]:
    """Signal shares at noise levels; after the last call the state counts as clean, whatever noise is left, as in diffusers."""
    return (*(1.0 / (1.0 + sigma**2) for sigma in sigmas[:-1]), 1.0)


def solver_route(timesteps: Sequence[float], sigmas: Sequence[float]) -> Route:
    """The route of a sampler that holds x_t itself, from its noise levels (one more than timesteps)."""
    return Route(tuple(timesteps), _abars(sigmas), (1.0,) * len(sigmas))
