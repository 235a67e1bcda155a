"""Runs of diffusers' schedulers from end to end, as its pipelines run them, to hold ours against.

diffusers tabulates and steps in float32. `in_double` makes a scheduler's own code compute in float64: what is left is the method, and the
difference to ours is rounding alone.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any
from unittest.mock import patch

import diffusers
import numpy as np
import torch
from numpy.typing import NDArray

from quad.core.manifest import NoiseSchedule, SamplerSpec
from quad.runtime.samplers import Start, run_sampler
from tests.runtime.samplers.conftest import Replay, any_network, diffusers_config

Array = NDArray[np.float64]
SHAPE = (2, 4, 3, 3)
SDE = "DPMSolverSDEScheduler"
IN_SIGMA_SPACE = ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler", SDE)
NEVER_RESCALED = ("PNDMScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler", SDE)


def scheduler_class(name: str) -> Any:
    """A class of diffusers; one imports torchsde for its noise, which `replay` hands out here in its place."""
    if name != SDE:
        return getattr(diffusers, name)
    where = "diffusers.schedulers.scheduling_dpmsolver_sde"
    if where not in sys.modules:
        with patch.dict(sys.modules, {"torchsde": ModuleType("torchsde")}):
            module = importlib.import_module(where)
        sys.modules[where] = module
    return getattr(sys.modules[where], name)


class _BrownianPath:
    """Stands for torchsde's: increments of one path from the level that a step begins at, over the root of their length."""

    def __init__(self, arrays: Iterator[Array]) -> None:
        self._arrays = arrays
        self._begun: tuple[float, float, Array] | None = None

    def __call__(self, sigma: Any, sigma_next: Any) -> torch.Tensor:
        start, end = float(sigma), float(sigma_next)
        if self._begun is None or self._begun[0] != start:
            way = np.sqrt(start - end) * next(self._arrays)
            self._begun = (start, end, way)
        else:
            _, middle, way = self._begun
            way, self._begun = way + np.sqrt(middle - end) * next(self._arrays), None
        return torch.from_numpy(way / np.sqrt(start - end))


@dataclass(frozen=True)
class Run:
    """The timesteps the network was asked at, and the variance-preserving state after each answer."""

    timesteps: list[float] = field(default_factory=list)
    states: list[Array] = field(default_factory=list)


@dataclass(frozen=True)
class _Wide:
    """A module whose float32 is its float64."""

    module: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, "float64" if name == "float32" else name)


@contextmanager
def in_double(name: str) -> Iterator[None]:
    """Within, the scheduler class of that name computes in float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with patch.multiple(sys.modules[scheduler_class(name).__module__], np=_Wide(np), torch=_Wide(torch)):
            yield
    finally:
        torch.set_default_dtype(before)


def open_scheduler(name: str, schedule: NoiseSchedule, **fields: Any) -> Any:
    """A diffusers scheduler of that class; those that cannot rescale are given Euler's table where the schedule is rescaled."""
    words = diffusers_config(schedule)
    if name not in NEVER_RESCALED:
        return scheduler_class(name)(**{**words, **fields})
    del words["rescale_betas_zero_snr"]
    scheduler = scheduler_class(name)(**{**words, **fields})
    if schedule.rescale_zero_snr:
        with in_double("EulerDiscreteScheduler"):
            scheduler.alphas_cumprod = open_scheduler("EulerDiscreteScheduler", schedule).alphas_cumprod
    return scheduler


def first_noise() -> Array:
    """The unit noise of every run here."""
    return np.random.default_rng(7).standard_normal(SHAPE)


def clean_latent() -> Array:
    """What image-to-image begins at."""
    return np.random.default_rng(9).standard_normal(SHAPE)


def run_ours(spec: SamplerSpec, schedule: NoiseSchedule, start: Start | None = None, rng: Any = None) -> Run:
    """Our run, from the same noise, with the same network."""
    run, fresh = Run(), np.random.default_rng(0) if rng is None else rng

    def keep(_index: int, timestep: float, x: Array) -> None:
        run.timesteps.append(timestep)
        run.states.append(x)

    run_sampler(spec, schedule, any_network, first_noise(), fresh, keep, start=start)
    return run


def _step(scheduler: Any, taken: int, answer: torch.Tensor, t: Any, x: torch.Tensor) -> torch.Tensor:
    # Begun in the middle, LMS weighs slopes it has not seen; its `order` keeps it to those it has.
    more = {"order": min(taken + 1, 4)} if type(scheduler).__name__ == "LMSDiscreteScheduler" else {}
    found: torch.Tensor = scheduler.step(answer, t, x, **more).prev_sample
    return found


def run_theirs(scheduler: Any, steps: int, start: Start | None = None, blend: Callable[[Array, Array], Array] | None = None) -> Run:
    """The loop of diffusers' image-to-image and inpainting pipelines; `blend(kept, state)` is their masked blending."""
    noise = torch.from_numpy(first_noise())
    scheduler.set_timesteps(steps)
    strength = 1.0 if start is None else start.strength
    begin = (steps - min(int(steps * strength), steps)) * scheduler.order
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    timesteps = scheduler.timesteps[begin:]
    clean = torch.from_numpy(clean_latent())
    from_noise = start is None or start.x0 is None
    x = noise * scheduler.init_noise_sigma if from_noise else scheduler.add_noise(clean, noise, timesteps[:1])
    run = Run([float(t) for t in timesteps])
    exploding = type(scheduler).__name__ in IN_SIGMA_SPACE
    for i, t in enumerate(timesteps):
        answer = any_network(scheduler.scale_model_input(x, t).numpy(), float(t))
        x = _step(scheduler, i, torch.from_numpy(answer), t, x)
        if blend is not None:
            kept = scheduler.add_noise(clean, noise, timesteps[i + 1 : i + 2]) if i + 1 < len(timesteps) else clean
            x = torch.from_numpy(blend(kept.numpy(), x.numpy()))
        # What the last step leaves is decoded as it is.
        sigma = float(scheduler.sigmas[begin + i + 1]) if exploding and i + 1 < len(timesteps) else 0.0
        middle = getattr(scheduler, "mid_point_sigma", None)  # one class says so where it is within a step
        run.states.append(x.numpy() / np.sqrt(1.0 + (sigma if middle is None else float(middle)) ** 2))
    return run


def replay(monkeypatch: Any, name: str, draws: int) -> Replay:
    """Arrays of noise, handed out to the scheduler of that name and to the generator returned in the same order."""
    arrays = list(np.random.default_rng(5).standard_normal((draws, *SHAPE)))
    rest = iter([*arrays, np.zeros(SHAPE)])  # some also draw in the last step, where noise has no weight
    module = sys.modules[scheduler_class(name).__module__]
    if name == SDE:
        monkeypatch.setattr(module, "BrownianTreeNoiseSampler", lambda *_: _BrownianPath(rest))
    else:
        monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: torch.from_numpy(next(rest)))
    return Replay(arrays)


def apart(ours: Run, theirs: Run, timestep: float = 1e-6) -> float:
    """The largest difference after any step, over the state's RMS; infinite where the timesteps are others, by more than `timestep`."""
    if len(ours.states) != len(theirs.states) or not np.allclose(ours.timesteps, theirs.timesteps, rtol=0.0, atol=timestep):
        return np.inf
    pairs = zip(ours.states, theirs.states, strict=True)
    return float(np.max([np.abs(mine - other).max() / np.sqrt(np.mean(other**2)) for mine, other in pairs]))
