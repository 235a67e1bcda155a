"""Run the sampler that a task names."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quad.core.errors import InputError, UnsupportedError, mismatch
from quad.core.manifest import NoiseSchedule, SamplerSpec
from quad.runtime.samplers.ddim import sample_ddim
from quad.runtime.samplers.denoiser import Denoiser, Model, OnStep
from quad.runtime.samplers.euler import sample_euler
from quad.runtime.samplers.lcm import sample_lcm
from quad.runtime.samplers.olss import checked_table, sample_olss


def run_sampler(
    spec: SamplerSpec,
    schedule: NoiseSchedule,
    model: Model,
    noise: NDArray[Any],
    rng: np.random.Generator,
    on_step: OnStep | None = None,
) -> NDArray[Any]:
    """Walk from unit noise x_T to the clean latent x_0, of the shape and dtype of `noise`.

    Args:
        model: called with the variance-preserving x_t (dtype of noise) and the timestep; returns the raw output after guidance.
        noise: unit normal, any shape, floating point.
        rng: fresh noise for `lcm`; the others do not touch it.
        on_step: called after each step with its index, its timestep and the variance-preserving state it led to.

    Raises:
        UsageError: a number of steps that the sampler cannot take.
        InputError: noise that is not floating point, or an OLSS table that is missing or broken.
        UnsupportedError: a sampler or schedule that we do not know, or epsilon prediction where no signal is left.
        BackendError: the network gave another shape or numbers that are not finite.

    Source: method.md section 6.
    """
    if not np.issubdtype(noise.dtype, np.floating):
        raise InputError(mismatch("sampler noise", "floating point", noise.dtype, "draw it with rng.standard_normal"))
    denoise = Denoiser(model, schedule, noise.dtype, on_step)
    start = noise.astype(np.float64)
    match spec.kind:
        case "euler":
            x0 = sample_euler(denoise, start, spec.steps)
        case "ddim":
            x0 = sample_ddim(denoise, start, spec.steps)
        case "lcm":
            x0 = sample_lcm(denoise, start, spec.steps, rng)
        case "olss":
            x0 = sample_olss(denoise, start, checked_table(spec, schedule.steps))
        case other:
            raise UnsupportedError(mismatch("sampler", "euler, ddim, lcm or olss", other, "name one of these"))
    return x0.astype(noise.dtype)
