"""Euler's method on the probability-flow equation dx/dsigma = (x - D(x, sigma)) / sigma (the paper's "ED").

    symbol    here       meaning
    sigma     `sigma`    noise over signal, sqrt((1 - abar) / abar)
    x         `x`        variance-exploding state, x_t sqrt(1 + sigma^2), as the method wants it
    D         `x0`       estimated clean latent
    d         `d`        slope dx/dsigma

The network and the caller see the variance-preserving x_t = x / sqrt(1 + sigma^2).
Source: Karras et al. 2022, Algorithm 1 without the second-order correction; numbers as diffusers' EulerDiscreteScheduler, trailing spacing.
"""

from __future__ import annotations

from math import sqrt

import numpy as np

from quad.runtime.samplers.denoiser import Denoiser
from quad.runtime.samplers.schedule import Array, check_steps, sigmas, trailing_timesteps


def sample_euler(denoise: Denoiser, noise: Array, steps: int) -> Array:
    """Walk from unit noise to x_0 in `steps` steps; order 1, deterministic.

    Raises:
        UsageError: more steps than the schedule has, or none.
    """
    schedule = denoise.schedule
    check_steps("euler", steps, schedule.steps)
    timesteps = trailing_timesteps(schedule, steps)
    path = np.append(sigmas(schedule)[timesteps], 0.0)
    x = noise * float(path[0])
    for i, t in enumerate(timesteps):
        sigma, sigma_next = float(path[i]), float(path[i + 1])
        x0, _ = denoise(x / sqrt(1.0 + sigma**2), t, 1.0 / (1.0 + sigma**2))
        d = (x - x0) / sigma
        x = x + d * (sigma_next - sigma)
        denoise.stepped(i, t, x / sqrt(1.0 + sigma_next**2))
    return x
