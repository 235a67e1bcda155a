"""Linear multistep: the slopes of the last steps as a polynomial in sigma, integrated over the next.

    symbol    here          meaning
    sigma     `sigmas`      noise over signal
    d         `slopes`      dx/dsigma at the last steps, newest first
    l_j       `_weights`    integral of the Lagrange polynomial that is 1 at sigma_j and 0 at the others

Source: Adams and Bashforth's formulas on an uneven grid; numbers as diffusers' LMSDiscreteScheduler, whose quadrature is
exact for these polynomials too. Where a run begins in the middle (image-to-image), the order grows with the slopes that were seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod, sqrt

from quad.runtime.samplers.contract import SamplerSetup, SamplerStep, SamplingSchedule, sigma_schedule
from quad.runtime.samplers.schedule import Array, sigma_path

ORDER = 4


def _weights(levels: Sequence[float], start: float, end: float) -> list[float]:
    """Integrals from start to end of the Lagrange polynomials on up to four noise levels; two Gauss points are exact."""
    middle, half = (start + end) / 2.0, (end - start) / 2.0
    points = (middle - half / sqrt(3.0), middle + half / sqrt(3.0))
    return [
        half * sum(prod((point - other) / (level - other) for other in levels if other != level) for point in points) for level in levels
    ]


@dataclass(kw_only=True)
class Lms:
    """Order up to 4, deterministic; keeps the last slopes."""

    setup: SamplerSetup
    sampling: SamplingSchedule
    sigmas: tuple[float, ...]
    slopes: list[Array] = field(default_factory=list)

    def advance(self, step: SamplerStep) -> Array:
        """One step."""
        i = step.index
        x0, _ = self.setup.estimate(step, self.sampling.abars[i])
        self.slopes = [(step.state - x0) / self.sigmas[i], *self.slopes][:ORDER]
        levels = [self.sigmas[i - j] for j in range(len(self.slopes))]
        weights = _weights(levels, self.sigmas[i], self.sigmas[i + 1])
        return sum((w * d for w, d in zip(weights, self.slopes, strict=True)), start=step.state)


def make_lms(setup: SamplerSetup) -> Lms:
    """The sampler of a setup.

    Raises:
        UsageError: more steps than the schedule has, or none.
    """
    timesteps, sigmas = sigma_path("lms", setup.schedule, setup.steps, setup.settings)
    return Lms(setup=setup, sampling=sigma_schedule(timesteps, sigmas, setup.settings), sigmas=tuple(sigmas))
