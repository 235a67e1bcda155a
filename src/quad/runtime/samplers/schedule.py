"""The noise schedule: how much of the picture is left at each timestep.

    symbol     here                meaning
    beta_t     `_betas`            variance added at training step t
    abar_t     `alphas_cumprod`    prod_{s<=t} (1 - beta_s), the share of signal variance left at t
    sigma_t    `sigmas`            sqrt((1 - abar_t) / abar_t), noise over signal

Source: Ho et al. 2020 (linear); Nichol and Dhariwal 2021, Eq. 17 (squaredcos_cap_v2); Lin et al. 2023, Algorithm 1 (zero terminal SNR).
The numbers are those of diffusers' schedulers, in float64: diffusers multiplies in float32, which near t = 0 moves sigma by up to
0.2 % at zero terminal SNR, differently from machine to machine.
"""

from __future__ import annotations

from functools import lru_cache

import msgspec
import numpy as np
from numpy.typing import NDArray

from quad.core.errors import UnsupportedError, UsageError, mismatch
from quad.core.manifest import NoiseSchedule

Array = NDArray[np.float64]

MAX_BETA = 0.999
# diffusers gives Euler this instead of abar = 0, where sigma would be infinite (the smallest positive half-precision number).
TERMINAL_ABAR = 2.0**-24


def _betas(schedule: NoiseSchedule) -> Array:
    """The variances added, float64 (steps,), before any rescaling."""
    steps, low, high = schedule.steps, schedule.beta_start, schedule.beta_end
    if schedule.trained_betas is not msgspec.UNSET:
        return np.asarray(schedule.trained_betas, dtype=np.float64)
    match schedule.beta_schedule:
        case "linear":
            return np.linspace(low, high, steps, dtype=np.float64)
        case "scaled_linear":
            return np.linspace(low**0.5, high**0.5, steps, dtype=np.float64) ** 2
        case "squaredcos_cap_v2":
            share = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
            return np.asarray(np.minimum(1.0 - share[1:] / share[:-1], MAX_BETA), dtype=np.float64)
        case other:
            known = "linear, scaled_linear or squaredcos_cap_v2"
            raise UnsupportedError(mismatch("noise schedule", known, other, "convert the base model's scheduler"))


@lru_cache(maxsize=8)
def alphas_cumprod(schedule: NoiseSchedule) -> Array:
    """The signal share abar_t, float64 (steps,), read-only; exactly 0 at the end when `rescale_zero_snr`.

    Raises:
        UnsupportedError: the beta schedule is not one of ours, or has no steps.
    """
    if schedule.steps < 2:
        raise UnsupportedError(mismatch("noise schedule", "2 or more steps", schedule.steps, "mend the base model's scheduler"))
    abar: Array = np.asarray(np.cumprod(1.0 - _betas(schedule)), dtype=np.float64)
    if schedule.rescale_zero_snr:
        root = np.sqrt(abar)
        abar = ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2
    abar.flags.writeable = False
    return abar


def sigmas(schedule: NoiseSchedule) -> Array:
    """Noise over signal sigma_t, float64 (steps,), finite at zero terminal SNR as in diffusers' EulerDiscreteScheduler."""
    abar = alphas_cumprod(schedule).copy()
    if schedule.rescale_zero_snr:
        abar[-1] = TERMINAL_ABAR
    return np.asarray(np.sqrt((1.0 - abar) / abar), dtype=np.float64)


def check_steps(sampler: str, steps: int, most: int) -> None:
    """Refuse a number of steps outside 1..most.

    Raises:
        UsageError: it is outside.
    """
    if not 1 <= steps <= most:
        raise UsageError(mismatch(f"sampler '{sampler}'", f"1 to {most} steps", steps, "ask for another number of steps"))
