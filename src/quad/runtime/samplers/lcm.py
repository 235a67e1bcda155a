"""Latent consistency sampling: jump to x_0, add fresh noise, jump again.

    symbol          here             meaning
    sigma_data      `SIGMA_DATA`     0.5
    c_skip, c_out   `c_skip, c_out`  s^2 / ((10 t)^2 + s^2) and 10 t / sqrt((10 t)^2 + s^2), s = sigma_data
    f(x_t, t)       `x0`             c_skip x_t + c_out x_0

Source: Luo et al. 2023, Eq. 9 and Algorithm 3; numbers and timesteps as diffusers' LCMScheduler.
"""

from __future__ import annotations

from math import sqrt

import numpy as np

from quad.core.manifest import NoiseSchedule
from quad.runtime.samplers.denoiser import Denoiser
from quad.runtime.samplers.schedule import Array, alphas_cumprod, check_steps

SIGMA_DATA = 0.5
TIMESTEP_SCALING = 10.0
# Consistency distillation runs on a grid of 50 timesteps; sampling visits some of these (diffusers' original_inference_steps).
GRID_STEPS = 50


def boundary_scalings(timestep: float) -> tuple[float, float]:
    """The pair (c_skip, c_out), which makes f the identity at t = 0."""
    scaled = timestep * TIMESTEP_SCALING
    total = scaled**2 + SIGMA_DATA**2
    return SIGMA_DATA**2 / total, scaled / sqrt(total)


def lcm_timesteps(schedule: NoiseSchedule, steps: int) -> list[int]:
    """`steps` timesteps, falling, nearly evenly spaced on the distillation grid, starting at its last.

    Raises:
        UsageError: more steps than the grid has, or none.
    """
    size = min(GRID_STEPS, schedule.steps)
    check_steps("lcm", steps, size)
    stride = schedule.steps // size
    places = np.floor(np.linspace(0, size, num=steps, endpoint=False)).astype(int)
    return [int((size - place) * stride - 1) for place in places]


def sample_lcm(denoise: Denoiser, noise: Array, steps: int, rng: np.random.Generator) -> Array:
    """Walk from unit noise to x_0 in `steps` jumps; draws `steps - 1` arrays of fresh noise from rng.

    Raises:
        UsageError: more steps than the distillation grid has, or none.
    """
    alphas = alphas_cumprod(denoise.schedule)
    timesteps = lcm_timesteps(denoise.schedule, steps)
    x = noise
    for i, t in enumerate(timesteps):
        c_skip, c_out = boundary_scalings(t)
        x0, _ = denoise(x, t, float(alphas[t]))
        x = c_skip * x + c_out * x0
        if i + 1 < steps:
            abar_next = float(alphas[timesteps[i + 1]])
            x = sqrt(abar_next) * x + sqrt(1.0 - abar_next) * rng.standard_normal(noise.shape)
        denoise.stepped(i, t, x)
    return x
