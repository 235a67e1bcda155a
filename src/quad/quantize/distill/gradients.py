"""The loss of the distillation, and the gradient of a step: one call after the other, added up in their order. See `training`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quad.quantize.distill.options import DistillOptions
from quad.quantize.distill.student import Student
from quad.quantize.distill.teacher_calls import TeacherCall
from quad.quantize.observe.batched_calls import concatenate
from quad.quantize.observe.side_by_side import side_by_side

_TINY = 1e-12


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


StepCall = tuple[TeacherCall, Tensor, TeacherCall | None]  # a call, the network's output of the zero adapter, an example beside it


def step_calls(training_set: TrainingSet, options: DistillOptions, step: int) -> list[StepCall]:
    """The calls of one step, in the order in which their gradients are added up."""
    rng, calls, examples = np.random.default_rng((options.seed, step)), training_set.calls, training_set.examples
    picks = rng.permutation(max(options.batch, len(calls)))[: options.batch] % len(calls)
    beside = [examples[i] for i in rng.integers(len(examples), size=options.batch)] if options.lambda_ else [None] * options.batch
    return [(*calls[pick], example) for pick, example in zip(picks, beside, strict=True)]


def gradients(accelerator: Any, student: Student, calls: Sequence[StepCall], options: DistillOptions) -> Tensor:
    """The gradient of every call's loss, `(calls, parameters)`; each process computes its own and is given all.

    What another process computes is zero here, so that adding up over processes rounds nothing, in whatever order it is done.
    """
    mine = range(accelerator.process_index, len(calls), accelerator.num_processes)
    computed = side_by_side(lambda k: _gradient(student, calls[k], options), mine)
    gradients = torch.zeros(len(calls), sum(weight.numel() for weight in student.weights))
    gradients[list(mine)] = torch.stack(computed)
    return gradients if accelerator.num_processes == 1 else accelerator.reduce(gradients, "sum")


def _gradient(student: Student, step_call: StepCall, options: DistillOptions) -> Tensor:
    """The gradient of one call's loss with respect to all weights, `(parameters,)`."""
    call, base, example = step_call
    inputs = [call.inputs] if example is None else [call.inputs, example.inputs]
    with torch.enable_grad():
        outputs = student(*concatenate(inputs)).split([len(sample) for sample, _, _ in inputs])
        loss = call_loss(outputs[0], call, base, options)
        if example is not None:
            loss = loss + options.lambda_ * _relative(outputs[1] - example.target, example.target)
        gradients = torch.autograd.grad(loss, list(student.weights), allow_unused=True, materialize_grads=True)
    return torch.cat([gradient.flatten() for gradient in gradients])


def set_gradients(student: Student, gradients: Tensor) -> None:
    """Give every weight the mean over the calls, added up in their order."""
    mean = torch.zeros_like(gradients[0])
    for gradient in gradients:
        mean += gradient
    mean /= len(gradients)
    parts = mean.split([weight.numel() for weight in student.weights])
    for weight, part in zip(student.weights, parts, strict=True):
        weight.grad = part.view_as(weight).clone()


def call_loss(output: Tensor, call: TeacherCall, base: Tensor, options: DistillOptions) -> Tensor:
    error = output - call.target
    # e_q - e_fp = (U_q - base) - (U_fp - without)
    missed = (error - (base - call.without)).square().mean()
    return _relative(error, call.target) + options.effect_weight * missed / call.target.square().mean().clamp(min=_TINY)


def _relative(error: Tensor, like: Tensor) -> Tensor:
    return error.square().mean() / like.square().mean().clamp(min=_TINY)
