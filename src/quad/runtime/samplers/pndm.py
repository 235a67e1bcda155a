"""PNDM: a linear multistep rule on raw network outputs, carried along DDIM's curve (the pseudo-numerical step).

    symbol          here          meaning
    abar, abar'     `abar, prev`  signal share where a step begins and ends
    e_t             `e`           combination of the outputs: Runge-Kutta's at first, Adams-Bashforth's later
    phi             `_transfer`   x_{t'} = sqrt(abar'/abar) x_t - (abar' - abar) e_t / (abar sqrt(1 - abar') + sqrt(abar (1 - abar) abar'))

With `skip_prk_steps` (Stable Diffusion) the first step is asked twice, as in Heun's method, and the order grows from there to 4; else the
first three steps are Runge-Kutta steps of four calls. Outputs are combined raw, in v prediction too, and read as eps afterwards.
A run that begins in the middle does as diffusers does: its second call also mends the first step, wherever it is.
Source: Liu et al. 2022, Eqs. 9, 12, 13 and Algorithm 2; numbers as diffusers' PNDMScheduler.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import sqrt

import numpy as np

from quad.core.errors import UnsupportedError, UsageError, mismatch
from quad.runtime.samplers.contract import Call, Job, Route, preserving_route
from quad.runtime.samplers.ddim import last_abar
from quad.runtime.samplers.schedule import Array, alphas_cumprod
from quad.runtime.samplers.spacing import whole_timesteps

# Adams-Bashforth on an even grid, newest output first.
ADAMS = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
RUNGE_KUTTA = (1 / 6, 1 / 3, 1 / 3, 1 / 6)
PRK_STEPS = 3


@dataclass
class Pndm:
    """Order up to 4, deterministic; keeps the last outputs and the state of the step it is in.

    Args:
        prk: timesteps of the Runge-Kutta calls, four for each step.
        taken: calls so far.
        outputs: newest first.
    """

    job: Job
    route: Route
    prk: tuple[int, ...]
    taken: int = 0
    outputs: list[Array] = field(default_factory=list)
    begun: list[Array] = field(default_factory=list)

    def advance(self, call: Call) -> Array:
        """One call: a quarter of a Runge-Kutta step, or a multistep."""
        t, place = round(self.route.timesteps[call.index]), self.taken
        self.taken += 1
        if place < len(self.prk):
            return self._runge_kutta(call, t, place)
        stride = self.job.schedule.steps // self.job.steps
        if place == 1:
            e = (call.output + self.outputs[0]) / 2.0
            return self._transfer(self.begun[0], e, t + stride, t)
        self.outputs = [call.output, *self.outputs][: len(ADAMS)]
        self.begun = [call.held]
        e = sum((w * o for w, o in zip(ADAMS[len(self.outputs) - 1], self.outputs, strict=True)), start=np.zeros_like(call.held))
        return self._transfer(call.held, e, t, t - stride)

    def _runge_kutta(self, call: Call, t: int, place: int) -> Array:
        quarter = place % 4
        half = self.job.schedule.steps // self.job.steps // 2
        if quarter == 0:
            self.outputs = [call.output, *self.outputs]
            self.begun = [call.held, np.zeros_like(call.held)]
        x, total = self.begun
        total = total + RUNGE_KUTTA[quarter] * call.output
        self.begun = [x, total]
        return self._transfer(x, total if quarter == 3 else call.output, self.prk[place - quarter], t if place % 2 else t - half)

    def _transfer(self, x: Array, e: Array, t: int, to: int) -> Array:
        alphas = alphas_cumprod(self.job.schedule)
        abar, prev = float(alphas[t]), float(alphas[to]) if to >= 0 else last_abar(self.job)
        if self.job.schedule.prediction == "v_prediction":
            e = sqrt(abar) * e + sqrt(1.0 - abar) * x
        below = abar * sqrt(1.0 - prev) + sqrt(abar * (1.0 - abar) * prev)
        return sqrt(prev / abar) * x - (prev - abar) / below * e


def _prk_timesteps(job: Job, timesteps: list[int]) -> tuple[int, ...]:
    """Four calls for each of the first three steps: begin, middle twice, end."""
    half = job.schedule.steps // job.steps // 2
    return tuple(t for begin, end in pairwise(timesteps[: PRK_STEPS + 1]) for t in (begin, end + half, end + half, end))


def make_pndm(job: Job) -> Pndm:
    """The sampler of a job.

    Raises:
        UsageError: more steps than the schedule has, or too few for its first steps.
        UnsupportedError: the network predicts the sample, or the schedule leaves no signal.
    """
    schedule, skip = job.schedule, job.settings.skip_prk_steps
    if schedule.prediction == "sample" or schedule.rescale_zero_snr:
        found = "sample" if schedule.prediction == "sample" else "zero terminal SNR"
        expected = "a network that predicts epsilon or v, and a signal left at the end"
        raise UnsupportedError(mismatch("sampler 'pndm'", expected, found, "choose ddim"))
    least = 1 if skip else PRK_STEPS + 1
    if job.steps < least:
        raise UsageError(mismatch("sampler 'pndm'", f"{least} steps or more", job.steps, "ask for another number of steps"))
    timesteps = whole_timesteps("pndm", schedule, job.steps, job.settings)
    prk = () if skip else _prk_timesteps(job, timesteps)
    rest = [*timesteps[:2], *timesteps[1:]] if skip else timesteps[PRK_STEPS:]
    return Pndm(job, replace(preserving_route(schedule, [*prk, *rest]), whole=not skip), prk)
