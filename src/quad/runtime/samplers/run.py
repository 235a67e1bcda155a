"""The one loop of all samplers: make the one that a task names, and run it from noise, or from a given latent with noise on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import sqrt
from typing import Any, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from quad.core.errors import BackendError, InputError, UnsupportedError, UsageError, mismatch
from quad.core.manifest import NoiseSchedule, SamplerSpec
from quad.core.sampling import SamplerKind, SamplerSettings
from quad.runtime.samplers.contract import Sampler, SamplerSetup, SamplerStep, SamplingSchedule
from quad.runtime.samplers.ddim import make_ddim
from quad.runtime.samplers.ddpm import make_ddpm
from quad.runtime.samplers.dpmsolver import make_dpmsolver
from quad.runtime.samplers.dpmsolver_sde import make_dpmsolver_sde
from quad.runtime.samplers.euler import make_euler, make_euler_ancestral
from quad.runtime.samplers.heun import make_heun
from quad.runtime.samplers.lcm import make_lcm
from quad.runtime.samplers.lms import make_lms
from quad.runtime.samplers.olss.sampler import make_olss
from quad.runtime.samplers.pndm import make_pndm
from quad.runtime.samplers.schedule import Array
from quad.runtime.samplers.tcd import make_tcd
from quad.runtime.samplers.unipc import make_unipc

Model = Callable[[NDArray[Any], float], NDArray[Any]]
OnStep = Callable[[int, float, NDArray[Any]], None]
Keep = Callable[[Array, float], NDArray[Any]]

_MAKERS: Mapping[str, Callable[[SamplerSetup], Sampler]] = {
    "ddim": make_ddim,
    "ddpm": make_ddpm,
    "pndm": make_pndm,
    "euler": make_euler,
    "euler-ancestral": make_euler_ancestral,
    "heun": make_heun,
    "lms": make_lms,
    "dpmsolver++": partial(make_dpmsolver, "dpmsolver++"),
    "sde-dpmsolver++": partial(make_dpmsolver, "sde-dpmsolver++"),
    "dpmsolver-sde": make_dpmsolver_sde,
    "dpmsolver": partial(make_dpmsolver, "dpmsolver"),
    "unipc": make_unipc,
    "lcm": make_lcm,
    "tcd": make_tcd,
}


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


@dataclass(frozen=True)
class SamplingRun:
    """A sampler from its first call to its last; made once and run once, because the sampler keeps what it computed.

    Args:
        first: index in the sampler's schedule of the call that it begins with.
    """

    sampler: Sampler
    start: Start
    first: int

    @property
    def calls(self) -> int:
        """How often the network is called."""
        return len(self.sampler.sampling.timesteps) - self.first

    def run(self, model: Model, noise: NDArray[Any], on_step: OnStep | None = None) -> NDArray[Any]:
        """From unit noise x_T to the clean latent x_0; samplers compute in float64, the network sees the dtype of `noise`.

        Raises:
            As `run_sampler`.
        """
        if not np.issubdtype(noise.dtype, np.floating):
            raise InputError(mismatch("sampler noise", "floating point", noise.dtype, "draw it with rng.standard_normal"))
        sampling, keep, first = self.sampler.sampling, self.start.keep, self.first
        # Where it begins: at noise, or at the given latent.
        state = self._first_state(noise.astype(np.float64))
        x_t = state / sampling.scales[first]
        for i in range(first, len(sampling.timesteps)):
            t = sampling.timesteps[i]
            # The network's output at x_t, and the state that the solver makes of it.
            output = network_output(model, x_t, t, noise.dtype)
            state = self.sampler.advance(SamplerStep(index=i, state=state, x_t=x_t, output=output))
            x_t = state / sampling.scales[i + 1]
            # What is to stay as in the given picture is put back.
            if keep is not None:
                x_t = np.asarray(keep(x_t, sampling.abars[i + 1]), dtype=np.float64)
                state = x_t * sampling.scales[i + 1]
            if on_step is not None:
                on_step(i - first, float(t), x_t.astype(noise.dtype))
        return x_t.astype(noise.dtype)

    def _first_state(self, noise: Array) -> Array:
        """The state before the first call, float64, shape of `noise`.

        Raises:
            InputError: a latent of another shape than the noise.
        """
        x0, sampling = self.start.x0, self.sampler.sampling
        if x0 is None:
            return noise * sampling.init_scale
        if x0.shape != noise.shape:
            raise InputError(mismatch("latent to begin at", f"shape {noise.shape}", x0.shape, "encode a picture of the graph's size"))
        return add_noise(x0, noise, sampling.abars[self.first]) * sampling.scales[self.first]


def network_output(model: Model, x: Array, timestep: float, dtype: np.dtype[Any]) -> Array:
    """The raw network output at variance-preserving x_t, float64, shape of x; the network sees x as `dtype`.

    Raises:
        BackendError: the network gave another shape, or numbers that are not finite.
    """
    output = np.asarray(model(x.astype(dtype), float(timestep)), dtype=np.float64)
    where = f"network output at timestep {timestep:g}"
    if output.shape != x.shape:
        raise BackendError(mismatch(where, f"shape {x.shape}", output.shape, "rebuild the bundle"))
    if not np.isfinite(output).all():
        way = "use guidance_scale and adapter weights nearer to 1, or check the profile with quad eval"
        raise BackendError(mismatch(where, "finite numbers", "NaN or infinity", way))
    return output


def plan_sampling(spec: SamplerSpec, schedule: NoiseSchedule, rng: np.random.Generator, start: Start | None = None) -> SamplingRun:
    """The run of the sampler that a task names; errors as in `run_sampler`, but for those of its calls."""
    start = Start() if start is None else start
    settings = SamplerSettings() if spec.settings is msgspec.UNSET else spec.settings
    setup = SamplerSetup(schedule=schedule, steps=spec.steps, settings=settings, rng=rng)
    if spec.kind == "olss":
        if start.x0 is not None or start.keep is not None:
            expected = "a run from noise, for which its table was solved"
            raise UsageError(mismatch("sampler 'olss'", expected, "a given latent", "choose another sampler"))
        sampler: Sampler = make_olss(spec, setup)
    elif spec.kind in _MAKERS:
        sampler = _MAKERS[spec.kind](setup)
    else:
        raise UnsupportedError(mismatch("sampler", f"one of {', '.join(get_args(SamplerKind))}", spec.kind, "name one of these"))
    return SamplingRun(sampler, start, _first_call(sampler.sampling, spec.steps, start))


def _first_call(sampling: SamplingSchedule, steps: int, start: Start) -> int:
    """Index of the network call that a run begins with.

    Raises:
        UsageError: a strength outside 0..1, one that leaves no step, or one under 1 without a latent or on a schedule that is taken whole.
    """
    if not 0.0 < start.strength <= 1.0:
        raise UsageError(mismatch("strength", "more than 0, at most 1", start.strength, "choose one in that range"))
    steps_left = min(int(steps * start.strength), steps)
    if steps_left < 1:
        request = f"{steps} steps at strength {start.strength:g}"
        raise UsageError(mismatch("strength", "one step at least", request, "choose more steps or a higher strength"))
    if start.x0 is None and steps_left < steps:
        raise UsageError(mismatch("strength", "1 where a run begins at noise", start.strength, "give the latent to begin at"))
    if sampling.from_start and steps_left < steps:
        expected = "1 with a sampler that begins with Runge-Kutta steps"
        raise UsageError(mismatch("strength", expected, start.strength, "choose another sampler"))
    return (steps - steps_left) * sampling.calls_per_step


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
    """Sample from unit noise x_T to the clean latent x_0, of the shape and dtype of `noise`.

    Args:
        model: called with the variance-preserving x_t (dtype of noise) and the timestep, which may have a fraction; returns the raw output
            after guidance.
        noise: unit normal, any shape, floating point.
        rng: fresh noise, `rng.standard_normal(noise.shape)` once for each call that adds some, in their order: `ddpm`, `euler-ancestral`,
            `sde-dpmsolver++`, `dpmsolver-sde`, `lcm`, `tcd`; the others do not touch it.
        on_step: called after each network call with its index, its timestep and the variance-preserving state it led to.
        start: a latent to begin at, and what is held on the way; noise alone where it is left out.

    Raises:
        UsageError: a number of steps, a strength or a start that the sampler cannot take.
        InputError: noise that is not floating point, a latent of another shape, or an OLSS table that is missing or broken.
        UnsupportedError: a sampler, schedule or settings that we do not know, or epsilon prediction where no signal is left.
        BackendError: the network gave another shape or numbers that are not finite.

    Source: docs/method.md section 6.
    """
    return plan_sampling(spec, schedule, rng, start).run(model, noise, on_step)
