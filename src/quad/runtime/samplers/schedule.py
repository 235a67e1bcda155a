"""The noise schedule, and the timesteps of it that a sampler visits, as diffusers' schedulers space them.

    symbol     here                meaning
    beta_t     `_betas`            variance added at training step t
    abar_t     `alphas_cumprod`    prod_{s<=t} (1 - beta_s), the share of signal variance left at t
    sigma_t    `sigmas`            sqrt((1 - abar_t) / abar_t), noise over signal
    rho        `RHO`               how much more densely `karras` visits low noise

Three families of classes read the same settings differently:

    ddim, ddpm, pndm                    `spaced_timesteps`, rounded
    euler, heun, lms                    `spaced_timesteps`, which may lie between training timesteps
    dpmsolver, unipc                    `spaced_timesteps` with `spare=1`: one more is spaced, and the last is left out

Source: Ho et al. 2020 (linear); Nichol and Dhariwal 2021, Eq. 17 (squaredcos_cap_v2); Lin et al. 2023, Algorithm 1 (zero terminal SNR)
and Table 2 (spacings); Karras et al. 2022, Eq. 5.
The numbers are those of diffusers 0.42, in float64: diffusers multiplies in float32, which near t = 0 moves sigma by up to
0.2 % at zero terminal SNR, differently from machine to machine.
"""

from __future__ import annotations

from functools import lru_cache

import msgspec
import numpy as np
from numpy.typing import NDArray

from quad.core.errors import UnsupportedError, UsageError, mismatch
from quad.core.manifest import NoiseSchedule
from quad.core.sampling import SamplerSettings

Array = NDArray[np.float64]

MAX_BETA = 0.999
# diffusers gives Euler this instead of abar = 0, where sigma would be infinite (the smallest positive half-precision number).
TERMINAL_ABAR = 2.0**-24
RHO = 7.0


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
            expected = "linear, scaled_linear or squaredcos_cap_v2"
            raise UnsupportedError(mismatch("noise schedule", expected, other, "convert the base model's scheduler"))


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


def spaced_timesteps(schedule: NoiseSchedule, steps: int, settings: SamplerSettings, *, spare: int = 0, last: int | None = None) -> Array:
    """`steps` timesteps, falling, float64, whole but for `linspace`.

    Args:
        spare: timesteps spaced with the others below them, and left out.
        last: timesteps of the schedule that may be visited; None: all.

    Raises:
        UsageError: so many steps that one would leave the schedule.
    """
    most, points = schedule.steps if last is None else last, steps + spare
    match settings.timestep_spacing:
        case "trailing":
            falling = np.arange(most, 0, -schedule.steps / steps).round() - 1.0
            # Rounding in arange can add one entry past the end.
            return np.asarray(falling[falling >= 0.0], dtype=np.float64)
        case "linspace":
            return np.linspace(0, most - 1, points)[::-1][:steps]
        case "leading":
            leading = (np.arange(points) * (most // points))[::-1][:steps] + float(settings.steps_offset)
    if leading[0] >= schedule.steps:
        expected = f"timesteps under {schedule.steps}"
        raise UsageError(mismatch(f"leading spacing of {steps} steps", expected, f"{leading[0]:g}", "ask for fewer steps"))
    return np.asarray(leading, dtype=np.float64)


def whole_timesteps(sampler: str, schedule: NoiseSchedule, steps: int, settings: SamplerSettings) -> list[int]:
    """The timesteps of ddim, ddpm and pndm.

    Raises:
        UsageError: a number of steps that the schedule has no room for.
    """
    check_steps(sampler, steps, schedule.steps)
    return [int(t) for t in spaced_timesteps(schedule, steps, settings).round()]


def timesteps_at(schedule: NoiseSchedule, levels: Array) -> Array:
    """The fractional training timesteps at noise levels sigma, by interpolation of log sigma."""
    table = np.log(sigmas(schedule))
    return np.interp(np.log(levels), table, np.arange(len(table)))


def noise_levels(first: float, last: float, steps: int, settings: SamplerSettings) -> Array:
    """The noise levels of `karras` or `exponential` between two, falling, float64 (steps,)."""
    high = first if settings.sigma_max is None else settings.sigma_max
    low = last if settings.sigma_min is None else settings.sigma_min
    ramp = np.linspace(0.0, 1.0, steps)
    if settings.sigmas == "exponential":
        return np.exp(np.linspace(np.log(high), np.log(low), steps))
    return np.asarray((high ** (1 / RHO) + ramp * (low ** (1 / RHO) - high ** (1 / RHO))) ** RHO, dtype=np.float64)


def final_level(schedule: NoiseSchedule, settings: SamplerSettings) -> float:
    """The noise level after the last step."""
    return 0.0 if settings.final_sigmas_type == "zero" else float(sigmas(schedule)[0])


def _falling(sampler: str, levels: Array) -> Array:
    """The noise levels, when each is under the one before by more than rounding.

    Raises:
        UsageError: they are not, and a step would lead nowhere.
    """
    if not (levels[1:] < levels[:-1] * (1.0 - 1e-9)).all():
        next_step = "ask for fewer steps or choose another spacing"
        raise UsageError(mismatch(f"sampler '{sampler}'", "noise levels that fall", "two that do not", next_step))
    return levels


def sigma_path(sampler: str, schedule: NoiseSchedule, steps: int, settings: SamplerSettings) -> tuple[list[float], list[float]]:
    """The timesteps of euler, heun and lms, and one noise level more.

    Raises:
        UsageError: a number of steps that the schedule has no room for, or levels that do not fall.
    """
    check_steps(sampler, steps, schedule.steps)
    table = sigmas(schedule)
    timesteps = spaced_timesteps(schedule, steps, settings)
    levels = np.interp(timesteps, np.arange(len(table)), table)
    if settings.sigmas != "timesteps":
        levels = noise_levels(float(levels[0]), float(levels[-1]), steps, settings)
        timesteps = timesteps_at(schedule, levels)
    path = [*(float(s) for s in _falling(sampler, levels)), final_level(schedule, settings)]
    return [float(t) for t in timesteps], path


def solver_path(sampler: str, schedule: NoiseSchedule, steps: int, settings: SamplerSettings) -> tuple[list[float], list[float]]:
    """The timesteps of dpmsolver and unipc, whole, and one noise level more.

    Raises:
        UsageError: a number of steps that the schedule has no room for, or levels that do not fall.
    """
    check_steps(sampler, steps, schedule.steps - 1)
    table = sigmas(schedule)
    if settings.sigmas == "timesteps":
        timesteps = spaced_timesteps(schedule, steps, settings, spare=1, last=_last_timestep(schedule, settings)).round()
        levels = np.interp(timesteps, np.arange(len(table)), table)
    else:
        levels = noise_levels(float(table[-1]), float(table[0]), steps, settings)
        timesteps = timesteps_at(schedule, levels)
        # diffusers rounds here, and cuts the fraction off there.
        rounded = settings.sigmas == "karras" and (sampler == "unipc" or schedule.beta_schedule != "squaredcos_cap_v2")
        timesteps = timesteps.round() if rounded else np.trunc(timesteps)
    path = _falling(sampler, np.append(levels, final_level(schedule, settings)))
    return [float(t) for t in timesteps], [float(s) for s in path]


def _last_timestep(schedule: NoiseSchedule, settings: SamplerSettings) -> int:
    """How many timesteps of the schedule have a log signal-to-noise, -log sigma, above the settings' least."""
    least = settings.lambda_min_clipped
    return schedule.steps if least is None else schedule.steps - int(np.searchsorted(-np.log(sigmas(schedule)[::-1]), least))
