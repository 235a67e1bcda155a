"""The tasks: names of the six, which one a call means, and what of it a call may change."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from quad.core.errors import UsageError, mismatch
from quad.core.manifest import NoiseSchedule, SamplerSpec, TaskSpec

TEXT_TO_IMAGE = "text-to-image"
TASKS = (TEXT_TO_IMAGE, "transform", "removal", "sketch", "sticker", "portrait")


def choose_task(asked: str | None, active: Sequence[str], tasks: Mapping[str, TaskSpec]) -> str:
    """The task of a call: the one asked for, else that of the active adapter, else text-to-image.

    Raises:
        UsageError: the bundle has no such task; the message lists those it has.
    """
    if asked is None:
        asked = next((task for name in active for task, spec in tasks.items() if spec.adapter == name), TEXT_TO_IMAGE)
    if asked not in tasks:
        raise UsageError(mismatch("task", f"one of {', '.join(sorted(tasks))}", repr(asked), "choose one of these"))
    return asked


def with_steps(sampler: SamplerSpec, steps: int | None, schedule: NoiseSchedule) -> SamplerSpec:
    """The task's sampler with another number of steps, where its kind allows it.

    Raises:
        UsageError: out of range, or an OLSS table, which is solved for its own number of steps.
    """
    if steps is None or steps == sampler.steps:
        return sampler
    if sampler.kind == "olss":
        raise UsageError(mismatch("num_inference_steps", f"{sampler.steps}, for which its olss table was solved", steps, "leave it out"))
    if not 1 <= steps <= schedule.steps:
        raise UsageError(mismatch("num_inference_steps", f"1 to {schedule.steps}", steps, "choose one in that range"))
    return msgspec.structs.replace(sampler, steps=steps)


@dataclass(frozen=True)
class Wishes:
    """What a call wants otherwise than its task says, by diffusers' names; None leaves it."""

    num_inference_steps: int | None = None
    strength: float | None = None
    guidance_scale: float | None = None
    image_guidance_scale: float | None = None


def as_wished(task: str, spec: TaskSpec, wishes: Wishes, schedule: NoiseSchedule) -> TaskSpec:
    """The task as one call runs it.

    Raises:
        UsageError: a number out of its range, or one that the task does not have.
    """
    changes: dict[str, object] = {"sampler": with_steps(spec.sampler, wishes.num_inference_steps, schedule)}
    if (strength := wishes.strength) is not None:
        if not spec.reads_picture:
            raise UsageError(mismatch("strength", f"a task that begins at a picture, which {task} does not", strength, "leave it out"))
        if not 0.0 < strength <= 1.0:
            raise UsageError(mismatch("strength", "more than 0, at most 1", strength, "choose one in that range"))
        changes["strength"] = float(strength)
    if wishes.guidance_scale is not None:
        changes["guidance"] = _finite("guidance_scale", wishes.guidance_scale)
    if (scale := wishes.image_guidance_scale) is not None:
        if spec.image_guidance is msgspec.UNSET:
            found = f"{task}, which has none"
            raise UsageError(mismatch("image_guidance_scale", "a task with picture guidance", found, "leave it out"))
        changes["image_guidance"] = _finite("image_guidance_scale", scale)
    return msgspec.structs.replace(spec, **changes)


def _finite(name: str, value: float) -> float:
    if not math.isfinite(value):
        raise UsageError(mismatch(name, "a finite number", value, "choose another"))
    return float(value)
