"""The training loop of the distillation: a simulated network whose only parameters are one adapter's. Source: docs/method.md section 1.

    L = |U_q - U_fp|^2 / |U_fp|^2  +  w |e_q - e_fp|^2 / |U_fp|^2  +  lambda |U_q - v|^2 / |v|^2

| symbol | here |
|---|---|
| U_fp, U_q | outputs of teacher and student for one call |
| e | effect: output with the adapter less that with the zero adapter, each network's own |
| w, lambda | `effect_weight`, `lambda_` |
| v | the exact answer of an example, where there are examples |

The two first terms part company: a student whose output is the teacher's has also mended errors of the base, and these count as errors
of its effect. Measured on the reference model at w8a16, gain over rescaling alone in PSNR of pictures, and effect SQNR ("output alone": 32
pictures a task, longer steps; "both": 64, as it is now):

| adapter | output alone | both, w = 1 | rescaling alone |
|---|---|---|---|
| transform | +0.31 dB, 15.5 dB | +0.14 dB, 22.9 dB | 32.9 dB |
| removal | +0.15 dB, 21.1 dB | +0.21 dB, 26.7 dB | 36.7 dB |
| portrait | -0.77 dB, 40.9 dB | +0.28 dB, 43.4 dB | 42.1 dB |

Under `accelerate launch` a step's calls are dealt to the processes and their gradients averaged: one step is the same step as in one
process. The main process alone writes, and its held-out loss is everyone's, so that all stop at the same step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from quad.core.errors import InputError, UsageError, mismatch
from quad.quantize.distill.checkpoint import Checkpoint, TrainingState
from quad.quantize.distill.student import Student
from quad.quantize.distill.teacher_calls import TeacherCall
from quad.quantize.observe.batched_calls import concatenate

Progress = Callable[[int, float], None]  # steps done, held-out loss of the best weights

_BETAS = (0.9, 0.99)
_TINY = 1e-12
_LAST_RATE = 0.1  # share of the rate at the end of the cosine


def silent(step: int, loss: float) -> None:
    """A `Progress` that shows nothing."""


@dataclass(frozen=True, kw_only=True)
class DistillOptions:
    """How the weights are trained.

    Args:
        steps: of Adam at most; 0 aligns by rescaling alone.
        rate: the first step's length, as a share of each tensor's root mean square; it falls along a cosine.
        batch: calls a step, over all processes.
        effect_weight: w.
        lambda_: weight of the denoising loss.
        every: steps between two checks on held-out calls.
        patience: checks without gain after which it stops.
        seed: of the order of calls.
        checkpoint: file to keep the state in, None for none.
    """

    steps: int = 0
    rate: float = 0.0008
    batch: int = 4
    effect_weight: float = 1.0
    lambda_: float = 0.0
    every: int = 10
    patience: int = 5
    seed: int = 0
    checkpoint: Path | None = None

    def check(self, examples: bool) -> None:
        """Refuse values outside their range.

        Args:
            examples: there is data with exact answers.

        Raises:
            UsageError: a negative number of steps or lambda, or a lambda without data.
        """
        if self.steps < 0:
            raise UsageError(mismatch("--distill-steps", "0 or more", self.steps, "choose a larger one"))
        if not 0.0 <= self.lambda_ < math.inf:
            raise UsageError(mismatch("--lambda", "a number from 0", self.lambda_, "choose another"))
        if self.lambda_ > 0.0 and self.steps == 0:
            raise UsageError(mismatch("--lambda", "steps of training", "--distill-steps 0", "ask for some, or leave it out"))
        if self.lambda_ > 0.0 and not examples:
            next_step = "leave it out: the teacher's runs are enough"
            raise UsageError(mismatch("--lambda", "samples with their true pictures", "none", next_step))


@dataclass(frozen=True)
class TrainingSet:
    """The calls that the student learns from and is checked on.

    Args:
        calls: to learn, each with the simulated network's output of the zero adapter.
        held_out: to check on, likewise.
        examples: with exact answers as targets; empty unless lambda is over 0.
    """

    calls: Sequence[tuple[TeacherCall, Tensor]]
    held_out: Sequence[tuple[TeacherCall, Tensor]]
    examples: Sequence[TeacherCall] = ()


def train(student: Student, training_set: TrainingSet, options: DistillOptions, checkpoint: Checkpoint, progress: Progress = silent
          ) -> tuple[dict[str, NDArray[np.float32]], int]:  # fmt: skip
    """Train until the steps are done or nothing is gained any more.

    Returns:
        The weights of least held-out loss, the start's among them, and the steps taken.

    Raises:
        UsageError: there are more processes than calls in a batch. InputError: not every process sees the checkpoint.
    """
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, mixed_precision="no")  # whatever the launcher was told: quantsim is float32 on the CPU
    world, rank = accelerator.num_processes, accelerator.process_index
    if world > options.batch:
        raise UsageError(mismatch("accelerate", f"at most {options.batch} processes", world, "start fewer"))
    wrapped = accelerator.prepare(student) if world > 1 else student
    groups = [{"params": [weight], "scale": size_of(weight.detach())} for weight in student.weights]
    optimizer = torch.optim.Adam(groups, lr=options.rate, betas=_BETAS, eps=1e-12)
    weights, best = list(student.weights), [weight.detach().clone() for weight in student.weights]
    state = checkpoint.load(weights, best, optimizer) or TrainingState(0, _held_out_loss(student, training_set, options), 0)
    _require_one_start(accelerator, state)
    while state.step < options.steps and state.stale < options.patience:
        _set_rate(optimizer, options, state.step)
        optimizer.zero_grad()
        accelerator.backward(_step_loss(wrapped, training_set, options, state.step, (rank, world)))
        optimizer.step()
        student.clip()
        state = TrainingState(state.step + 1, state.best, state.stale)
        if state.step % options.every == 0 or state.step == options.steps:
            state = _checked(_mains(accelerator, _held_out_loss(student, training_set, options)), state, weights, best)
            if accelerator.is_main_process:
                checkpoint.save(state, weights, best, optimizer)
                progress(state.step, state.best)
    return student.arrays(best), state.step


def size_of(weight: Tensor) -> float:
    """Root mean square of what is not padding, which is exactly zero."""
    return float(weight.square().sum().div(weight.count_nonzero().clamp(min=1)).sqrt())


def _require_one_start(accelerator: Any, state: TrainingState) -> None:
    """Processes that begin at different steps would wait for each other for ever: one of them does not see the checkpoint."""
    steps = set(accelerator.gather(torch.tensor([state.step])).tolist())
    if len(steps) > 1:
        next_step = "put it where every process can read it, or remove it"
        raise InputError(mismatch("checkpoint", "the same for all processes", "steps " + ", ".join(map(str, sorted(steps))), next_step))


def _mains(accelerator: Any, loss: float) -> float:
    """The main process's value: on unlike machines the last digit may differ, and who stops must be agreed on."""
    return float(accelerator.gather(torch.tensor([loss], dtype=torch.float64))[0])


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


def _step_loss(network: nn.Module, training_set: TrainingSet, options: DistillOptions, step: int, place: tuple[int, int]) -> Tensor:
    """This process's share of the loss of one step, scaled so that the mean over processes is the mean over the batch.

    Args:
        place: number of this process, and of how many.
    """
    (rank, world), rng = place, np.random.default_rng((options.seed, step))
    picks = rng.permutation(max(options.batch, len(training_set.calls)))[: options.batch] % len(training_set.calls)
    chosen = [training_set.calls[i] for i in picks[rank::world]]
    examples = []
    if options.lambda_:
        examples = [training_set.examples[i] for i in rng.integers(len(training_set.examples), size=options.batch)[rank::world]]
    inputs = [call.inputs for call, _ in chosen] + [example.inputs for example in examples]
    outputs = network(*concatenate(inputs)).split([len(sample) for sample, _, _ in inputs])
    losses = [_call_loss(y, call, base, options) for y, (call, base) in zip(outputs, chosen, strict=False)]
    for y, example in zip(outputs[len(chosen) :], examples, strict=True):
        losses.append(options.lambda_ * _relative(y - example.target, example.target))
    return torch.stack(losses).sum() * (world / options.batch)


def _held_out_loss(student: Student, training_set: TrainingSet, options: DistillOptions) -> float:
    with torch.no_grad():
        losses = [_call_loss(student(*call.inputs), call, base, options) for call, base in training_set.held_out]
    return float(torch.stack(losses).mean())


def _call_loss(output: Tensor, call: TeacherCall, base: Tensor, options: DistillOptions) -> Tensor:
    error = output - call.target
    # e_q - e_fp = (U_q - base) - (U_fp - without)
    missed = (error - (base - call.without)).square().mean()
    return _relative(error, call.target) + options.effect_weight * missed / call.target.square().mean().clamp(min=_TINY)


def _relative(error: Tensor, like: Tensor) -> Tensor:
    return error.square().mean() / like.square().mean().clamp(min=_TINY)
