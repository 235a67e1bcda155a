"""The one loop of all samplers, and where it may begin: at noise, or at a given latent with noise on it (image-to-image)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quad.core.errors import InputError, UsageError, mismatch
from quad.runtime.samplers.contract import Call, Route, Sampler
from quad.runtime.samplers.denoiser import Denoiser
from quad.runtime.samplers.schedule import Array

Keep = Callable[[Array, float], NDArray[Any]]


@dataclass(frozen=True)
class Start:
    """Where a run begins, and what is held on its way. Source: Meng et al. 2022 (SDEdit); numbers as diffusers' pipelines.

    Args:
        x0: a clean latent, shape of the noise: the run begins at it, with the first timestep's noise on it. None: at noise alone.
        strength: of n steps, the last min(int(n strength), n) are taken.
        keep: called after each network call with the state x_t (float64) and the signal share at the next call's timestep (1 after the
            last); what it returns is the state from there on. `add_noise(x0, noise, abar)` is x0 at that level.
    """

    x0: NDArray[Any] | None = None
    strength: float = 1.0
    keep: Keep | None = None


def add_noise(x0: NDArray[Any], noise: NDArray[Any], abar: float) -> Array:
    """x_t = sqrt(abar) x_0 + sqrt(1 - abar) eps, float64. Source: Ho et al. 2020, Eq. 4."""
    return np.asarray(sqrt(abar) * x0.astype(np.float64) + sqrt(1.0 - abar) * noise.astype(np.float64), dtype=np.float64)


def first_call(route: Route, steps: int, start: Start) -> int:
    """The network call that a run begins with.

    Raises:
        UsageError: a strength outside 0..1, one that leaves no step, or one under 1 without a latent or on a route that is taken whole.
    """
    if not 0.0 < start.strength <= 1.0:
        raise UsageError(mismatch("strength", "more than 0, at most 1", start.strength, "choose one in that range"))
    taken = min(int(steps * start.strength), steps)
    if taken < 1:
        found = f"{steps} steps at strength {start.strength:g}"
        raise UsageError(mismatch("strength", "one step at least", found, "choose more steps or a higher strength"))
    if start.x0 is None and taken < steps:
        raise UsageError(mismatch("strength", "1 where a run begins at noise", start.strength, "give the latent to begin at"))
    if route.whole and taken < steps:
        expected = "1 with a sampler that begins with Runge-Kutta steps"
        raise UsageError(mismatch("strength", expected, start.strength, "choose another sampler"))
    return (steps - taken) * route.calls_per_step


def _begin(sampler: Sampler, noise: Array, start: Start, first: int) -> Array:
    """The held state before the first call.

    Raises:
        InputError: a latent of another shape than the noise.
    """
    route = sampler.route
    if start.x0 is None:
        return noise * route.unit
    if start.x0.shape != noise.shape:
        raise InputError(mismatch("latent to begin at", f"shape {noise.shape}", start.x0.shape, "encode a picture of the graph's size"))
    return add_noise(start.x0, noise, route.abars[first]) * route.scales[first]


def walk(sampler: Sampler, denoise: Denoiser, noise: Array, start: Start, steps: int) -> Array:
    """Ask the network along the route, and return the last state.

    Raises:
        UsageError, InputError: a start that cannot be, see `first_call`; or errors of the network.
    """
    route = sampler.route
    first = first_call(route, steps, start)
    held = _begin(sampler, noise, start, first)
    seen = held / route.scales[first]
    for i in range(first, len(route.timesteps)):
        t = route.timesteps[i]
        held = sampler.advance(Call(i, held, seen, denoise.output(seen, t)))
        seen = held / route.scales[i + 1]
        if start.keep is not None:
            seen = np.asarray(start.keep(seen, route.abars[i + 1]), dtype=np.float64)
            held = seen * route.scales[i + 1]
        denoise.stepped(i - first, t, seen)
    return seen
