"""The training loop of the distillation: a simulated network whose only parameters are one adapter's. Source: docs/method.md section 1.

    L = |U_q - U_fp|^2 / |U_fp|^2  +  w |e_q - e_fp|^2 / |U_fp|^2  +  lambda |U_q - v|^2 / |v|^2

| symbol | here |
|---|---|
| U_fp, U_q | outputs of teacher and student for one call |
| e | effect: output with the adapter less that with the zero adapter, each network's own |
| w, lambda | `effect_weight`, `lambda_` |
| v | the exact answer of an example, where there are examples |

The two first terms part company: a student whose output is the teacher's has also mended errors of the base, and these count as errors
of its effect. Measured on the reference model at w8a16 with each weight rounded to the nearest, gain over rescaling alone in PSNR of
pictures, and effect SQNR ("output alone": 32 pictures a task, longer steps; "both": 64). With compensated rounding there is less to mend,
and w is 4 (docs/adr/0037-compensated-rounding.md):

| adapter | output alone | both, w = 1 | rescaling alone |
|---|---|---|---|
| transform | +0.31 dB, 15.5 dB | +0.14 dB, 22.9 dB | 32.9 dB |
| removal | +0.15 dB, 21.1 dB | +0.21 dB, 26.7 dB | 36.7 dB |
| portrait | -0.77 dB, 40.9 dB | +0.28 dB, 43.4 dB | 42.1 dB |

A step takes the gradients of two of its calls at a time and adds them up in the order of the calls. So pairs may run side by side, and
under `accelerate launch` be dealt to processes: the sum is the same, bit for bit. The main process alone writes, and its held-out loss is
everyone's, so that all stop at the same step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quad.core.errors import InputError, mismatch
from quad.core.processes import is_main
from quad.quantize.distill.checkpoint import Checkpoint, TrainingState
from quad.quantize.distill.gradients import TrainingSet, call_loss, gradients, set_gradients, step_calls
from quad.quantize.distill.options import DistillOptions
from quad.quantize.distill.student import Student
from quad.quantize.observe.batched_calls import batched
from quad.quantize.processes.dealt import from_each, json_codec, shared

Progress = Callable[[int, float], None]  # steps done, held-out loss of the best weights

_BETAS = (0.9, 0.99)
_LAST_RATE = 0.1  # share of the rate at the end of the cosine


def silent(step: int, loss: float) -> None:
    """A `Progress` that shows nothing."""


def train(student: Student, training_set: TrainingSet, options: DistillOptions, checkpoint: Checkpoint, progress: Progress = silent
          ) -> tuple[dict[str, NDArray[np.float32]], int]:  # fmt: skip
    """Train until the steps are done or nothing is gained any more.

    Returns:
        The weights of least held-out loss, the start's among them, and the steps taken.

    Raises:
        InputError: not every process sees the checkpoint.
    """
    groups = [{"params": [weight], "scale": size_of(weight.detach())} for weight in student.weights]
    optimizer = torch.optim.Adam(groups, lr=options.rate, betas=_BETAS, eps=1e-12)
    weights, best = list(student.weights), [weight.detach().clone() for weight in student.weights]
    state = checkpoint.load(weights, best, optimizer) or TrainingState(0, _held_out_loss(student, training_set, options), 0)
    _require_one_start(state)
    while state.step < options.steps and state.stale < options.patience:
        _set_rate(optimizer, options, state.step)
        calls = step_calls(training_set, options, state.step)
        set_gradients(student, gradients(student, calls, options), len(calls))
        optimizer.step()
        student.clip()
        state = TrainingState(state.step + 1, state.best, state.stale)
        if state.step % options.every == 0 or state.step == options.steps:
            # The main process's value: on unlike machines the last digit may differ, and who stops must be agreed on.
            loss = shared(lambda: _held_out_loss(student, training_set, options), json_codec(float))
            state = _checked(loss, state, weights, best)
            if is_main():
                checkpoint.save(state, weights, best, optimizer)
                progress(state.step, state.best)
    return student.arrays(best), state.step


def size_of(weight: Tensor) -> float:
    """Root mean square of what is not padding, which is exactly zero."""
    return float(weight.square().sum().div(weight.count_nonzero().clamp(min=1)).sqrt())


def _require_one_start(state: TrainingState) -> None:
    """Processes that begin at different steps would wait for each other for ever: one of them does not see the checkpoint."""
    steps = set(from_each(state.step, json_codec(int)))
    if len(steps) > 1:
        next_step = "put it where every process can read it, or remove it"
        raise InputError(mismatch("checkpoint", "the same for all processes", "steps " + ", ".join(map(str, sorted(steps))), next_step))


def _checked(loss: float, state: TrainingState, weights: Sequence[Tensor], best: Sequence[Tensor]) -> TrainingState:
    """The state after a look at the held-out calls; better weights go to `best`."""
    if not loss < state.best:  # NaN is no gain
        return TrainingState(state.step, state.best, state.stale + 1)
    with torch.no_grad():
        for best_weight, weight in zip(best, weights, strict=True):
            best_weight.copy_(weight)
    return TrainingState(state.step, loss, 0)


def _set_rate(optimizer: torch.optim.Optimizer, options: DistillOptions, step: int) -> None:
    share = _LAST_RATE + (1.0 - _LAST_RATE) * 0.5 * (1.0 + math.cos(math.pi * step / options.steps))
    for group in optimizer.param_groups:
        group["lr"] = options.rate * share * group["scale"]


def _held_out_loss(student: Student, training_set: TrainingSet, options: DistillOptions) -> float:
    held_out = training_set.held_out
    outputs = batched(student, [call.inputs for call, _ in held_out], student.device)
    losses = [float(call_loss(output, call, base, options)) for output, (call, base) in zip(outputs, held_out, strict=True)]
    return float(np.mean(losses))
