"""Diffusion problems whose network is known in closed form, and a driver that walks diffusers' schedulers beside ours.

x_t = sqrt(abar) x_0 + sqrt(1 - abar) eps, with x_0 from a mixture of Gaussians of deviation `spread` at `centres` (K, D).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from quad.core.manifest import NoiseSchedule, SamplerSpec
from quad.runtime.samplers import alphas_cumprod, run_sampler

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Mixture:
    """The best possible network for a Gaussian mixture, in any prediction."""

    schedule: NoiseSchedule
    centres: Array
    spread: float = 0.3
    floor: float = 0.0  # diffusers' Euler takes abar no smaller than 2**-24

    def __call__(self, x: Array, timestep: float) -> Array:
        """The raw output at x_t, shape (batch, D)."""
        abar = max(float(alphas_cumprod(self.schedule)[int(timestep)]), self.floor)
        variance = abar * self.spread**2 + 1.0 - abar
        away = x[:, None, :] - np.sqrt(abar) * self.centres
        score = -(away**2).sum(-1) / (2.0 * variance)
        share = np.exp(score - score.max(1, keepdims=True))
        share = share / share.sum(1, keepdims=True)
        x0 = (share[..., None] * (self.centres + np.sqrt(abar) * self.spread**2 / variance * away)).sum(1)
        eps = (x - np.sqrt(abar) * x0) / np.sqrt(1.0 - abar)
        outputs = {"sample": x0, "epsilon": eps, "v_prediction": np.sqrt(abar) * eps - np.sqrt(1.0 - abar) * x0}
        return outputs[self.schedule.prediction]


def any_network(x: Array, timestep: float) -> Array:
    """A smooth function of x and t that means nothing: parity must hold for every network."""
    return np.tanh(0.7 * x + np.roll(x, 1, axis=-1) * 0.3) + 0.2 * np.cos(timestep / 300.0)


@dataclass(frozen=True)
class Walk:
    """Every state of a run: ours from `run_sampler`, the other's from a diffusers scheduler fed with our state at each step."""

    timesteps: list[float]
    ours: list[Array]
    theirs: list[Array]


def walk_beside(scheduler: Any, spec: SamplerSpec, schedule: NoiseSchedule, fresh: list[Array], scale: Callable[[int], float]) -> Walk:
    """Run ours, and from each of our states one step of `scheduler`; `scale(i)` turns state i into what the scheduler holds."""
    noise = np.random.default_rng(7).standard_normal((2, 4, 3, 3))
    walk, states, asked, rng = Walk([], [], []), [noise], [], Replay(fresh)

    def network(x: Array, timestep: float) -> Array:
        output = any_network(x, timestep)
        asked.append((x, output))
        return output

    def keep(_index: int, timestep: float, x: Array) -> None:
        walk.timesteps.append(timestep)
        states.append(x)

    final = run_sampler(spec, schedule, network, noise, rng, keep)  # type: ignore[arg-type]
    np.testing.assert_array_equal(final, states[-1])
    walk.ours.extend(states[1:])
    for i, t in enumerate(scheduler.timesteps):
        seen, output = asked[i]
        held = torch.from_numpy(states[i] * scale(i))
        np.testing.assert_allclose(seen, scheduler.scale_model_input(held, t).numpy(), rtol=1e-5)
        walk.theirs.append(scheduler.step(torch.from_numpy(output), t, held).prev_sample.numpy() / scale(i + 1))
    return walk


class Replay:
    """A generator that hands out arrays drawn beforehand."""

    def __init__(self, arrays: list[Array]) -> None:
        self.arrays = list(arrays)

    def standard_normal(self, shape: tuple[int, ...]) -> Array:
        """The next array."""
        assert self.arrays[0].shape == shape
        return self.arrays.pop(0)


def zero_snr(prediction: str) -> NoiseSchedule:
    """The reference model's schedule."""
    return NoiseSchedule(prediction=prediction)  # type: ignore[arg-type]


def stable_diffusion(prediction: str) -> NoiseSchedule:
    """Stable Diffusion 1.5's schedule."""
    return NoiseSchedule(beta_schedule="scaled_linear", rescale_zero_snr=False, prediction=prediction)  # type: ignore[arg-type]


def cosine(prediction: str) -> NoiseSchedule:
    """The cosine schedule that keeps a little signal, so that epsilon is enough; sigma is smooth in t down to the end."""
    return NoiseSchedule(rescale_zero_snr=False, prediction=prediction)  # type: ignore[arg-type]


def diffusers_config(schedule: NoiseSchedule) -> dict[str, Any]:
    """The same schedule in diffusers' words."""
    return {
        "num_train_timesteps": schedule.steps,
        "beta_schedule": schedule.beta_schedule,
        "beta_start": schedule.beta_start,
        "beta_end": schedule.beta_end,
        "rescale_betas_zero_snr": schedule.rescale_zero_snr,
        "prediction_type": schedule.prediction,
        "timestep_spacing": "trailing",
    }


@dataclass(frozen=True)
class Lab:
    """What the tests of this folder share."""

    mixture: Callable[..., Mixture] = Mixture
    walk_beside: Callable[..., Walk] = walk_beside
    config: Callable[[NoiseSchedule], dict[str, Any]] = diffusers_config
    zero_snr: Callable[[str], NoiseSchedule] = zero_snr
    stable_diffusion: Callable[[str], NoiseSchedule] = stable_diffusion

    cosine: Callable[[str], NoiseSchedule] = cosine

    def curved(self, schedule: NoiseSchedule) -> Mixture:
        """Five centres in 16 dimensions: a problem whose flow is curved."""
        return Mixture(schedule, np.random.default_rng(0).standard_normal((5, 16)))

    def gaussian_error(self, kind: str, schedule: NoiseSchedule, steps: int) -> float:
        """RMS error of a solver on one Gaussian, where the flow is known: x_t keeps its standardised place for ever."""
        floor = 2.0**-24 if kind == "euler" else 0.0
        problem = Mixture(schedule, np.full((1, 3), 0.8), 0.5, floor)
        noise = np.random.default_rng(3).standard_normal((64, 3))
        abar = max(float(alphas_cumprod(schedule)[-1]), floor)
        first = noise * np.sqrt(1.0 - abar) if kind == "euler" else noise
        place = (first - np.sqrt(abar) * problem.centres) / np.sqrt(abar * problem.spread**2 + 1.0 - abar)
        found = run_sampler(SamplerSpec(kind=kind, steps=steps), schedule, problem, noise, np.random.default_rng(0))  # type: ignore[arg-type]
        return float(np.sqrt(np.mean((found - (problem.centres + problem.spread * place)) ** 2)))

    def slope(self, kind: str, schedule: NoiseSchedule) -> float:
        """The slope of log error over log steps, fitted over three halvings of the step."""
        steps = [25, 50, 100, 200]
        errors = [self.gaussian_error(kind, schedule, n) for n in steps]
        return float(-np.polyfit(np.log(steps), np.log(errors), 1)[0])


@pytest.fixture(scope="session")
def lab() -> Lab:
    """The shared problems and drivers."""
    return Lab()
