"""The one shape of all samplers: a schedule of network calls, and what a solver does with each output.

    symbol   here        meaning
    x_t      `x_t`       variance-preserving state, sqrt(abar) x_0 + sqrt(1 - abar) eps: what network and caller see
    x        `state`     what a solver computes with: x_t times the schedule's scale
    abar     `abars`     share of signal variance left, 1 is clean
    sigma    `sigma`     noise over signal, sqrt((1 - abar) / abar)
    x_0      `x0`        estimated clean latent
    eps      `eps`       estimated unit noise
    v        `output`    sqrt(abar) eps - sqrt(1 - abar) x_0, for prediction `v_prediction`

Samplers in sigma space hold x = x_0 + sigma eps = x_t sqrt(1 + sigma^2); the others hold x_t itself.
Source: Salimans and Ho 2022, appendix D (v); Song et al. 2021 (DDIM), Eq. 9.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Protocol

import numpy as np

from quad.core.errors import UnsupportedError, mismatch
from quad.core.manifest import NoiseSchedule
from quad.core.sampling import SamplerSettings
from quad.runtime.samplers.schedule import Array, alphas_cumprod


@dataclass(frozen=True, kw_only=True)
class SamplingSchedule:
    """Where the network is called, and how noisy the state is there.

    Args:
        timesteps: one per network call.
        abars: signal share of the state before each call, and 1 after the last: n + 1 entries.
        scales: state over x_t, at the same places; 1 after the last, where the state is the picture.
        init_scale: what unit noise is multiplied with to be the first state.
        calls_per_step: 2 where a step calls twice; image-to-image begins at a whole step.
        from_start: it has to be taken from its beginning.
    """

    timesteps: tuple[float, ...]
    abars: tuple[float, ...]
    scales: tuple[float, ...]
    init_scale: float = 1.0
    calls_per_step: int = 1
    from_start: bool = False


@dataclass(frozen=True, kw_only=True)
class SamplerStep:
    """One network call: its index in the schedule, the states before it, and the raw output; float64, one shape."""

    index: int
    state: Array
    x_t: Array
    output: Array


class Sampler(Protocol):
    """A solver on its schedule; one object serves one run, and may keep earlier steps."""

    @property
    def sampling(self) -> SamplingSchedule:
        """Where it calls the network."""

    def advance(self, step: SamplerStep) -> Array:
        """The state that this network output leads to."""


@dataclass(frozen=True, kw_only=True)
class SamplerSetup:
    """Everything that a sampler is made of: the base's schedule, steps and settings, and the generator of fresh noise."""

    schedule: NoiseSchedule
    steps: int
    settings: SamplerSettings
    rng: np.random.Generator

    def estimate(self, step: SamplerStep, abar: float) -> tuple[Array, Array]:
        """The pair (x_0, eps) that a network output means; the settings may clip x_0, which leaves eps as it is."""
        x0, eps = split_output(self.schedule.prediction, step.output, step.x_t, abar)
        limit = self.settings.clip_sample_range
        return (x0 if limit is None else np.clip(x0, -limit, limit)), eps


def split_output(prediction: str, output: Array, x: Array, abar: float) -> tuple[Array, Array]:
    """The pair (x_0, eps) that a network output means at x_t; all arrays have the shape of x.

    Raises:
        UnsupportedError: an unknown prediction, or `epsilon` where no signal is left (x_0 cannot be told there).
    """
    signal, noise = sqrt(abar), sqrt(1.0 - abar)
    match prediction:
        case "v_prediction":
            return signal * x - noise * output, signal * output + noise * x
        case "sample":
            return output, (x - signal * output) / noise
        case "epsilon" if abar > 0.0:
            return (x - noise * output) / signal, output
        case "epsilon":
            next_step = "use the euler sampler or a base without rescaled betas"
            raise UnsupportedError(mismatch("sampler", "v_prediction or sample at zero terminal SNR", "epsilon", next_step))
        case other:
            expected = "prediction epsilon, v_prediction or sample"
            raise UnsupportedError(mismatch("noise schedule", expected, other, "convert the base model"))


def preserving_schedule(schedule: NoiseSchedule, timesteps: Sequence[float]) -> SamplingSchedule:
    """The schedule of a solver whose state is x_t itself, at whole timesteps."""
    alphas = alphas_cumprod(schedule)
    abars = (*(float(alphas[round(t)]) for t in timesteps), 1.0)
    return SamplingSchedule(timesteps=tuple(timesteps), abars=abars, scales=(1.0,) * len(abars))


def sigma_schedule(
    timesteps: Sequence[float], sigmas: Sequence[float], settings: SamplerSettings, calls_per_step: int = 1
) -> SamplingSchedule:
    """The schedule of a solver whose state is x_0 + sigma eps, from its noise levels (one more than timesteps)."""
    scales = (*(sqrt(1.0 + sigma**2) for sigma in sigmas[:-1]), 1.0)
    # As diffusers: where the last training timestep is not sure to be visited, unit noise is x_t, else it is eps.
    init_scale = scales[0] if settings.timestep_spacing == "leading" else sigmas[0]
    return SamplingSchedule(
        timesteps=tuple(timesteps), abars=_abars(sigmas), scales=scales, init_scale=init_scale, calls_per_step=calls_per_step
    )


def solver_schedule(timesteps: Sequence[float], sigmas: Sequence[float]) -> SamplingSchedule:
    """The schedule of a solver whose state is x_t itself, from its noise levels (one more than timesteps)."""
    return SamplingSchedule(timesteps=tuple(timesteps), abars=_abars(sigmas), scales=(1.0,) * len(sigmas))


def _abars(sigmas: Sequence[float]) -> tuple[float, ...]:
    """Signal shares at noise levels; after the last call the state counts as clean, whatever noise is left, as in diffusers."""
    return (*(1.0 / (1.0 + sigma**2) for sigma in sigmas[:-1]), 1.0)
