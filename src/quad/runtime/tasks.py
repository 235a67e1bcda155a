"""The six tasks: their names, and which one a call means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
