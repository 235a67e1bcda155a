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
from quad.runtime.samplers.contract import SamplerSetup, SamplerStep, SamplingSchedule, preserving_schedule
from quad.runtime.samplers.ddim import last_abar
from quad.runtime.samplers.schedule import Array, alphas_cumprod, whole_timesteps

# Adams-Bashforth on an even grid, newest output first.
ADAMS = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
RUNGE_KUTTA = (1 / 6, 1 / 3, 1 / 3, 1 / 6)
PRK_STEPS = 3


@dataclass(kw_only=True)
class Pndm:
    """Order up to 4, deterministic; keeps the last outputs and the state of the step it is in.

    Args:
        prk: timesteps of the Runge-Kutta calls, four for each step.
        calls: network calls so far.
        outputs: newest first.
    """

    setup: SamplerSetup
    sampling: SamplingSchedule
    prk: tuple[int, ...]
    calls: int = 0
    outputs: list[Array] = field(default_factory=list)
    begun: list[Array] = field(default_factory=list)

    def advance(self, step: SamplerStep) -> Array:
        """One call: a quarter of a Runge-Kutta step, or a multistep."""
        t, place = round(self.sampling.timesteps[step.index]), self.calls
        self.calls += 1
        if place < len(self.prk):
            return self._runge_kutta(step, t, place)
        stride = self.setup.schedule.steps // self.setup.steps
        if place == 1:
            e = (step.output + self.outputs[0]) / 2.0
            return self._transfer(self.begun[0], e, t + stride, t)
        self.outputs = [step.output, *self.outputs][: len(ADAMS)]
        self.begun = [step.state]
        e = sum((w * o for w, o in zip(ADAMS[len(self.outputs) - 1], self.outputs, strict=True)), start=np.zeros_like(step.state))
        return self._transfer(step.state, e, t, t - stride)

    def _runge_kutta(self, step: SamplerStep, t: int, place: int) -> Array:
        quarter = place % 4
        half = self.setup.schedule.steps // self.setup.steps // 2
        if quarter == 0:
            self.outputs = [step.output, *self.outputs]
            self.begun = [step.state, np.zeros_like(step.state)]
        x, total = self.begun
        total = total + RUNGE_KUTTA[quarter] * step.output
        self.begun = [x, total]
        return self._transfer(x, total if quarter == 3 else step.output, self.prk[place - quarter], t if place % 2 else t - half)

    def _transfer(self, x: Array, e: Array, t: int, to: int) -> Array:
        alphas = alphas_cumprod(self.setup.schedule)
        abar, prev = float(alphas[t]), float(alphas[to]) if to >= 0 else last_abar(self.setup)
        if self.setup.schedule.prediction == "v_prediction":
            e = sqrt(abar) * e + sqrt(1.0 - abar) * x
        below = abar * sqrt(1.0 - prev) + sqrt(abar * (1.0 - abar) * prev)
        return sqrt(prev / abar) * x - (prev - abar) / below * e


def _prk_timesteps(setup: SamplerSetup, timesteps: list[int]) -> tuple[int, ...]:
    """Four calls for each of the first three steps: begin, middle twice, end."""
    half = setup.schedule.steps // setup.steps // 2
    return tuple(t for begin, end in pairwise(timesteps[: PRK_STEPS + 1]) for t in (begin, end + half, end + half, end))


def make_pndm(setup: SamplerSetup) -> Pndm:
    """The sampler of a setup.

    Raises:
        UsageError: more steps than the schedule has, or too few for its first steps.
        UnsupportedError: the network predicts the sample, or the schedule leaves no signal.
    """
    schedule, skip = setup.schedule, setup.settings.skip_prk_steps
    if schedule.prediction == "sample" or schedule.rescale_zero_snr:
        reason = "sample" if schedule.prediction == "sample" else "zero terminal SNR"
        expected = "a network that predicts epsilon or v, and a signal left at the end"
        raise UnsupportedError(mismatch("sampler 'pndm'", expected, reason, "choose ddim"))
    least = 1 if skip else PRK_STEPS + 1
    if setup.steps < least:
        raise UsageError(mismatch("sampler 'pndm'", f"{least} steps or more", setup.steps, "ask for another number of steps"))
    timesteps = whole_timesteps("pndm", schedule, setup.steps, setup.settings)
    prk = () if skip else _prk_timesteps(setup, timesteps)
    multistep = [*timesteps[:2], *timesteps[1:]] if skip else timesteps[PRK_STEPS:]
    sampling = replace(preserving_schedule(schedule, [*prk, *multistep]), from_start=not skip)
    return Pndm(setup=setup, sampling=sampling, prk=prk)
