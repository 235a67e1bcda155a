"""DDIM without added noise (eta = 0): the teacher's sampler.

    symbol    here         meaning
    abar_t    `abar`       share of signal variance left at t
    x_0, eps  `x0, eps`    estimates at x_t

    x_prev = sqrt(abar_prev) x_0 + sqrt(1 - abar_prev) eps

Source: Song et al. 2021, Eq. 12 with sigma = 0; numbers as diffusers' DDIMScheduler, trailing spacing, no clipping.
"""

from __future__ import annotations

from math import sqrt

from quad.runtime.samplers.denoiser import Denoiser
from quad.runtime.samplers.schedule import Array, alphas_cumprod, check_steps, trailing_timesteps


def sample_ddim(denoise: Denoiser, noise: Array, steps: int) -> Array:
    """Walk from unit noise to x_0 in `steps` steps; order 1, deterministic.

    Raises:
        UsageError: more steps than the schedule has, or none.
    """
    schedule = denoise.schedule
    check_steps("ddim", steps, schedule.steps)
    alphas = alphas_cumprod(schedule)
    # As diffusers: the step is the whole number of training steps, also where the spacing is not whole.
    stride = schedule.steps // steps
    x = noise
    for i, t in enumerate(trailing_timesteps(schedule, steps)):
        x0, eps = denoise(x, t, float(alphas[t]))
        abar_prev = float(alphas[t - stride]) if t >= stride else 1.0
        x = sqrt(abar_prev) * x0 + sqrt(1.0 - abar_prev) * eps
        denoise.stepped(i, t, x)
    return x
