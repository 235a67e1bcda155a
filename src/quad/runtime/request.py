"""A request for a picture, the tasks it may name, and what a pipeline makes of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from quad.core.errors import UsageError, mismatch
from quad.core.manifest import NoiseSchedule, SamplerSpec, TaskSpec
from quad.runtime.adapters.store import adapter_weights
from quad.runtime.conditioning.condition import DEFAULT_GROW_PX
from quad.runtime.conditioning.picture import PictureSource
from quad.runtime.conditioning.prompt_syntax import SYNTAXES, PromptSyntax

TEXT_TO_IMAGE = "text-to-image"
TASKS = (TEXT_TO_IMAGE, "transform", "removal", "sketch", "sticker", "portrait")


@dataclass(frozen=True, kw_only=True)
class Request:
    """One picture, by the names of `QuadPipeline.__call__`, where each is told; the pictures must not be written to meanwhile.

    Args:
        adapters: adapter name -> weight, as given to `set_adapters`; empty for the base, None for the task's own.
    """

    prompt: str = ""
    task: str | None = None
    adapters: Mapping[str, float] | None = None
    image: PictureSource | None = None
    mask_image: PictureSource | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    seed: int = 0
    negative_prompt: str = ""
    mask_grow: int = DEFAULT_GROW_PX
    strength: float | None = None
    image_guidance_scale: float | None = None
    latents: NDArray[np.float32] | None = None
    prompt_syntax: PromptSyntax = "a1111"


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """A request as a pipeline understands it.

    Args:
        spec: of the task, with what the request overrides.
        weights: adapter name -> weight.
        notes: what the user should be told.
    """

    task: str
    spec: TaskSpec
    weights: dict[str, float]
    notes: tuple[str, ...] = ()


def resolve(request: Request, tasks: Mapping[str, TaskSpec], schedule: NoiseSchedule) -> Resolved:
    """Task and adapters that a request means.

    Raises:
        UsageError: an unknown task, or a number out of its range.
    """
    for name, text in (("prompt", request.prompt), ("negative_prompt", request.negative_prompt)):
        if not isinstance(text, str):
            raise UsageError(mismatch(name, "one string", type(text).__name__, "call once per prompt"))
        # No half of a character, as bytes become that are no text of the terminal's encoding: no tokenizer takes one.
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise UsageError(mismatch(name, "text in UTF-8", repr(text), "write it again"))
    if request.prompt_syntax not in SYNTAXES:
        raise UsageError(mismatch("prompt_syntax", f"one of {', '.join(SYNTAXES)}", repr(request.prompt_syntax), "choose one of these"))
    task = choose_task(request.task, list(request.adapters or ()), tasks)
    spec = with_overrides(task, tasks[task], request, schedule)
    if request.adapters is None:
        return Resolved(task=task, spec=spec, weights={spec.adapter: 1.0} if spec.adapter is not None else {})
    weights = adapter_weights(list(request.adapters), list(request.adapters.values()))
    if spec.adapter is None or spec.adapter in weights:
        return Resolved(task=task, spec=spec, weights=weights)
    note = f"adapters: task {task} is meant for {spec.adapter!r}, which is not active"
    return Resolved(task=task, spec=spec, weights=weights, notes=(note,))


def choose_task(name: str | None, active: Sequence[str], tasks: Mapping[str, TaskSpec]) -> str:
    """The task of a call: the one of that name, else that of the active adapter, else text-to-image.

    Raises:
        UsageError: the bundle has no such task; the message lists those it has.
    """
    if name is None:
        name = next((task for adapter in active for task, spec in tasks.items() if spec.adapter == adapter), TEXT_TO_IMAGE)
    if name not in tasks:
        raise UsageError(mismatch("task", f"one of {', '.join(sorted(tasks))}", repr(name), "choose one of these"))
    return name


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


def with_overrides(task: str, spec: TaskSpec, request: Request, schedule: NoiseSchedule) -> TaskSpec:
    """The task as one request runs it.

    Raises:
        UsageError: a number out of its range, or one that the task does not have.
    """
    changes: dict[str, object] = {"sampler": with_steps(spec.sampler, request.num_inference_steps, schedule)}
    if (strength := request.strength) is not None:
        if not spec.reads_picture:
            raise UsageError(mismatch("strength", f"a task that begins at a picture, which {task} does not", strength, "leave it out"))
        if not 0.0 < strength <= 1.0:
            raise UsageError(mismatch("strength", "more than 0, at most 1", strength, "choose one in that range"))
        changes["strength"] = float(strength)
    if request.guidance_scale is not None:
        changes["guidance"] = _finite("guidance_scale", request.guidance_scale)
    if (scale := request.image_guidance_scale) is not None:
        if spec.image_guidance is msgspec.UNSET:
            reason = f"{task}, which has none"
            raise UsageError(mismatch("image_guidance_scale", "a task with picture guidance", reason, "leave it out"))
        changes["image_guidance"] = _finite("image_guidance_scale", scale)
    return msgspec.structs.replace(spec, **changes)


def _finite(name: str, value: float) -> float:
    if not math.isfinite(value):
        raise UsageError(mismatch(name, "a finite number", value, "choose another"))
    return float(value)
