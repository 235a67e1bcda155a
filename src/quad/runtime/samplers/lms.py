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

from quad.runtime.samplers.contract import Call, Job, Route, sigma_route
from quad.runtime.samplers.schedule import Array
from quad.runtime.samplers.spacing import sigma_path

ORDER = 4


def _weights(known: Sequence[float], start: float, end: float) -> list[float]:
    """Integrals from start to end of the Lagrange polynomials on up to four noise levels; two Gauss points are exact."""
    middle, half = (start + end) / 2.0, (end - start) / 2.0
    points = (middle - half / sqrt(3.0), middle + half / sqrt(3.0))
    others = [[other for other in known if other != own] for own in known]
    return [
        half * sum(prod((point - other) / (own - other) for other in rest) for point in points)
        for own, rest in zip(known, others, strict=True)
    ]


@dataclass
class Lms:
    """Order up to 4, deterministic; keeps the last slopes."""

    job: Job
    route: Route
    sigmas: tuple[float, ...]
    slopes: list[Array] = field(default_factory=list)

    def advance(self, call: Call) -> Array:
        """One step."""
        i = call.index
        x0, _ = self.job.estimate(call, self.route.abars[i])
        self.slopes = [(call.held - x0) / self.sigmas[i], *self.slopes][:ORDER]
        known = [self.sigmas[i - j] for j in range(len(self.slopes))]
        weights = _weights(known, self.sigmas[i], self.sigmas[i + 1])
        return sum((w * d for w, d in zip(weights, self.slopes, strict=True)), start=call.held)


def make_lms(job: Job) -> Lms:
    """The sampler of a job.

    Raises:
        UsageError: more steps than the schedule has, or none.
    """
    timesteps, sigmas = sigma_path("lms", job.schedule, job.steps, job.settings)
    return Lms(job, sigma_route(timesteps, sigmas, job.settings), tuple(sigmas))
