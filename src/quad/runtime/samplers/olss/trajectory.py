"""The record of a teacher run: its states and outputs, the data of the OLSS solver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quad.core.errors import UsageError, mismatch
from quad.core.manifest import NoiseSchedule, SamplerSpec
from quad.runtime.samplers.run import Model, run_sampler
from quad.runtime.samplers.schedule import Array


@dataclass(frozen=True)
class Trajectory:
    """One deterministic run of N steps.

    Args:
        timesteps: where the network was asked, N entries, falling.
        states: x_0 (the unit noise) to x_N (the clean latent), variance-preserving, float64 (N + 1, *shape).
        outputs: e_0 to e_{N-1}, the raw network outputs after guidance, float64 (N, *shape).
    """

    timesteps: tuple[int, ...]
    states: Array
    outputs: Array


def record_trajectory(teacher: SamplerSpec, schedule: NoiseSchedule, model: Model, noise: NDArray[Any]) -> Trajectory:
    """Run the teacher's sampler from `noise` (unit normal, any shape) and keep every state and output.

    Raises:
        UsageError: the teacher is not ddim or euler (fresh noise cannot be learned), or errors of `run_sampler`.
    """
    if teacher.kind not in ("ddim", "euler"):
        raise UsageError(mismatch("olss teacher", "sampler ddim or euler", teacher.kind, "choose one of these"))
    timesteps: list[int] = []
    states: list[Array] = [np.array(noise, dtype=np.float64)]
    outputs: list[Array] = []

    def listen(x: NDArray[Any], timestep: float) -> NDArray[Any]:
        output = model(x.astype(noise.dtype), timestep)
        timesteps.append(round(timestep))
        outputs.append(np.array(output, dtype=np.float64))
        return output

    def keep(_index: int, _timestep: float, x: NDArray[Any]) -> None:
        states.append(np.array(x, dtype=np.float64))

    # States are kept in float64, the network still sees the dtype of the noise. A deterministic sampler never draws from the generator.
    run_sampler(teacher, schedule, listen, states[0], np.random.default_rng(0), keep)
    return Trajectory(tuple(timesteps), np.stack(states), np.stack(outputs))
