"""Run the sampler that a task names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from quad.core.errors import InputError, UnsupportedError, UsageError, mismatch
from quad.core.manifest import NoiseSchedule, SamplerSpec
from quad.core.sampling import SamplerKind, SamplerSettings
from quad.runtime.samplers.contract import Job, Sampler
from quad.runtime.samplers.ddim import make_ddim
from quad.runtime.samplers.ddpm import make_ddpm
from quad.runtime.samplers.denoiser import Denoiser, Model, OnStep
from quad.runtime.samplers.dpmsolver import make_dpmsolver
from quad.runtime.samplers.euler import make_euler, make_euler_ancestral
from quad.runtime.samplers.heun import make_heun
from quad.runtime.samplers.lcm import make_lcm
from quad.runtime.samplers.lms import make_lms
from quad.runtime.samplers.loop import Start, first_call, walk
from quad.runtime.samplers.olss.sampler import make_olss
from quad.runtime.samplers.pndm import make_pndm
from quad.runtime.samplers.unipc import make_unipc

_MAKERS: Mapping[str, Callable[[Job], Sampler]] = {
    "ddim": make_ddim,
    "ddpm": make_ddpm,
    "pndm": make_pndm,
    "euler": make_euler,
    "euler-ancestral": make_euler_ancestral,
    "heun": make_heun,
    "lms": make_lms,
    "dpmsolver++": partial(make_dpmsolver, "dpmsolver++"),
    "sde-dpmsolver++": partial(make_dpmsolver, "sde-dpmsolver++"),
    "dpmsolver": partial(make_dpmsolver, "dpmsolver"),
    "unipc": make_unipc,
    "lcm": make_lcm,
}


def make_sampler(spec: SamplerSpec, schedule: NoiseSchedule, rng: np.random.Generator, start: Start) -> Sampler:
    """The sampler that a task names; errors as in `run_sampler`."""
    settings = SamplerSettings() if spec.settings is msgspec.UNSET else spec.settings
    job = Job(schedule, spec.steps, settings, rng)
    if spec.kind == "olss":
        if start.x0 is not None or start.keep is not None:
            then = "choose another sampler"
            raise UsageError(mismatch("sampler 'olss'", "a run from noise, for which its table was solved", "a given latent", then))
        return make_olss(spec, job)
    if spec.kind not in _MAKERS:
        raise UnsupportedError(mismatch("sampler", f"one of {', '.join(get_args(SamplerKind))}", spec.kind, "name one of these"))
    return _MAKERS[spec.kind](job)


def count_calls(spec: SamplerSpec, schedule: NoiseSchedule, start: Start | None = None) -> int:
    """How often `run_sampler` calls the network; it raises what `run_sampler` would before its first call."""
    begin = Start() if start is None else start
    route = make_sampler(spec, schedule, np.random.default_rng(0), begin).route
    return len(route.timesteps) - first_call(route, spec.steps, begin)


def run_sampler(  # noqa: PLR0913 - the start is given by name, and rarely
    spec: SamplerSpec,
    schedule: NoiseSchedule,
    model: Model,
    noise: NDArray[Any],
    rng: np.random.Generator,
    on_step: OnStep | None = None,
    *,
    start: Start | None = None,
) -> NDArray[Any]:
    """Walk from unit noise x_T to the clean latent x_0, of the shape and dtype of `noise`.

    Args:
        model: called with the variance-preserving x_t (dtype of noise) and the timestep, which may have a fraction; returns the raw output
            after guidance.
        noise: unit normal, any shape, floating point.
        rng: fresh noise, `rng.standard_normal(noise.shape)` once for each call that adds some, in their order: `ddpm`, `euler-ancestral`,
            `sde-dpmsolver++`, `lcm`; the others do not touch it.
        on_step: called after each network call with its index, its timestep and the variance-preserving state it led to.
        start: a latent to begin at, and what is held on the way; noise alone where it is left out.

    Raises:
        UsageError: a number of steps, a strength or a start that the sampler cannot take.
        InputError: noise that is not floating point, a latent of another shape, or an OLSS table that is missing or broken.
        UnsupportedError: a sampler, schedule or settings that we do not know, or epsilon prediction where no signal is left.
        BackendError: the network gave another shape or numbers that are not finite.

    Source: method.md section 6.
    """
    if not np.issubdtype(noise.dtype, np.floating):
        raise InputError(mismatch("sampler noise", "floating point", noise.dtype, "draw it with rng.standard_normal"))
    begin = Start() if start is None else start
    sampler = make_sampler(spec, schedule, rng, begin)
    denoise = Denoiser(model, noise.dtype, on_step)
    return walk(sampler, denoise, noise.astype(np.float64), begin, spec.steps).astype(noise.dtype)
