"""The loss of the distillation, and the gradient of a step: two calls at a time, added up in their order. See `training`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from quad.quantize.distill.options import DistillOptions
from quad.quantize.distill.student import Student
from quad.quantize.distill.teacher_calls import TeacherCall
from quad.quantize.observe.batched_calls import concatenate
from quad.quantize.processes.dealt import Codec, together

TOGETHER = 2  # calls in one batch: a small network spends much of a single call on other things than its sums
_VALUES = 2**13  # of latents in such a batch: of larger ones the memory counts
_TINY = 1e-12
_TENSOR = Codec[Tensor](lambda tensor: (None, {"": tensor.numpy()}), lambda packed: torch.tensor(packed[1][""]))


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


def gradients(student: Student, calls: Sequence[StepCall], options: DistillOptions) -> Tensor:
    """The gradients of the summed losses of every two calls, or of each, `(parts, parameters)`, whichever process computes them."""
    size = TOGETHER if TOGETHER * max(call.inputs[0].numel() for call, _, _ in calls) <= _VALUES else 1
    parts = [calls[first : first + size] for first in range(0, len(calls), size)]
    return torch.stack(together(lambda part: _gradient(student, part, options), parts, _TENSOR))


def _gradient(student: Student, part: Sequence[StepCall], options: DistillOptions) -> Tensor:
    """The gradient of the summed losses of some calls with respect to all weights, `(parameters,)`."""
    examples = [example for _, _, example in part if example is not None]
    inputs = [*(call.inputs for call, _, _ in part), *(example.inputs for example in examples)]
    with torch.enable_grad():
        outputs = student(*concatenate(inputs)).split([len(sample) for sample, _, _ in inputs])
        losses = [call_loss(output, call, base, options) for output, (call, base, _) in zip(outputs, part, strict=False)]
        for output, example in zip(outputs[len(part) :], examples, strict=True):
            losses.append(options.lambda_ * _relative(output - example.target, example.target))
        loss = torch.stack(losses).sum()
        gradients = torch.autograd.grad(loss, list(student.weights), allow_unused=True, materialize_grads=True)
    return torch.cat([gradient.flatten() for gradient in gradients]).cpu()


def set_gradients(student: Student, gradients: Tensor, calls: int) -> None:
    """Give every weight the mean over so many calls, their parts added up in order."""
    mean = torch.zeros_like(gradients[0])
    for gradient in gradients:
        mean += gradient
    mean /= calls
    parts = mean.split([weight.numel() for weight in student.weights])
    for weight, part in zip(student.weights, parts, strict=True):
        weight.grad = part.view_as(weight).to(weight.device, copy=True)


def call_loss(output: Tensor, call: TeacherCall, base: Tensor, options: DistillOptions) -> Tensor:
    error = output - call.target
    # e_q - e_fp = (U_q - base) - (U_fp - without)
    missed = (error - (base - call.without)).square().mean()
    return _relative(error, call.target) + options.effect_weight * missed / call.target.square().mean().clamp(min=_TINY)


def _relative(error: Tensor, like: Tensor) -> Tensor:
    return error.square().mean() / like.square().mean().clamp(min=_TINY)
