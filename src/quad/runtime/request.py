"""A request for a picture, the tasks it may name, and what a pipeline makes of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from quad.core.errors import UsageError, mismatch
from quad.core.manifest import NoiseSchedule, SamplerSpec, TaskSpec
from quad.core.picture_size import PictureSize
from quad.core.sampling import AdapterDefaults, SamplerKind
from quad.runtime.adapter_defaults import (
    Presets,
    check_guidance,
    joint_defaults,
    reachable_strength,
    sampler_text,
    trigger_notes,
    with_defaults,
)
from quad.runtime.adapters.block_weights import Weight, adapter_weights
from quad.runtime.arguments import flag, number, one_of, whole_number
from quad.runtime.conditioning.condition import DEFAULT_GROW_PX
from quad.runtime.conditioning.guidance import parse_interval
from quad.runtime.conditioning.picture import PictureSource
from quad.runtime.conditioning.prompt_syntax import SYNTAXES, PromptSyntax
from quad.runtime.conditioning.size_conditions import DEFAULT_SIZES, SizeConditions

TEXT_TO_IMAGE, MOST_REUSE = "text-to-image", 100
# For numbers of steps that no OLSS table was solved for: near to the table's teacher at all of them, see docs/adr/0027-samplers-at-run.md.
OLSS_STAND_IN: SamplerKind = "dpmsolver++"
TASKS = (TEXT_TO_IMAGE, "transform", "removal", "sketch", "sticker", "portrait")


@dataclass(frozen=True, kw_only=True)
class Request:
    """One picture, by the names of `QuadPipeline.__call__`, where each is told; the pictures must not be written to meanwhile.

    Args:
        adapters: adapter name -> weight, as given to `set_adapters`; empty for the base, None for the task's own.
        sampler: `KIND` or `KIND:STEPS`, any that the runtime has; None for the adapters' or the task's own.
        width, height: of the picture in pixels, one of the bundle's sizes; None for its first one, or the first of that other side.
        guidance_interval: `START:END` or a pair, shares of the way from noise, 0, to picture, 1, between which guidance counts.
        reuse: one call of the U-Net of so many is whole, the others take its deep feature, where the bundle is built for it.
        tiny_decoder: the picture comes of the small decoder, where the bundle has one.
        generator: in place of the seed; it is drawn from when the request is prepared, and while it runs.
        sizes: what the model is told of the picture's size, if it is told any.
    """

    prompt: str = ""
    task: str | None = None
    adapters: Mapping[str, Weight] | None = None
    image: PictureSource | None = None
    mask_image: PictureSource | None = None
    num_inference_steps: int | None = None
    sampler: str | None = None
    guidance_scale: float | None = None
    seed: int = 0
    negative_prompt: str = ""
    mask_grow: int = DEFAULT_GROW_PX
    strength: float | None = None
    image_guidance_scale: float | None = None
    guidance_interval: str | Sequence[float] | None = None
    reuse: int = 1
    tiny_decoder: bool = False
    latents: NDArray[np.float32] | None = None
    width: int | None = None
    height: int | None = None
    generator: np.random.Generator | None = None
    prompt_syntax: PromptSyntax = "a1111"
    sizes: SizeConditions = DEFAULT_SIZES


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """A request as a pipeline understands it.

    Args:
        spec: of the task, with what the request overrides.
        weights: adapter name -> weight.
        notes: what the user should be told.
        size: of the picture; None for the bundle's first one.
        reuse, tiny_decoder: as asked for.
    """

    task: str
    spec: TaskSpec
    weights: dict[str, Weight]
    notes: tuple[str, ...] = ()
    size: PictureSize | None = None
    reuse: int = 1
    tiny_decoder: bool = False


def resolve(request: Request, tasks: Mapping[str, TaskSpec], schedule: NoiseSchedule, presets: Presets | None = None) -> Resolved:
    """Task and adapters that a request means.

    Args:
        presets: what the bundle and its adapters say of samplers.

    Raises:
        UsageError: an unknown task or sampler, or a number out of its range.
    """
    presets = presets or Presets()
    for name, text in (("prompt", request.prompt), ("negative_prompt", request.negative_prompt)):
        if not isinstance(text, str):
            raise UsageError(mismatch(name, "one string", type(text).__name__, "call once per prompt"))
        # No half of a character, as bytes become that are no text of the terminal's encoding: no tokenizer takes one.
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise UsageError(mismatch(name, "text in UTF-8", repr(text), "write it again"))
    one_of("prompt_syntax", request.prompt_syntax, SYNTAXES)
    whole_number("mask_grow", request.mask_grow)
    task = choose_task(request.task, list(request.adapters or ()), tasks)
    own, notes = tasks[task], list[str]()
    if request.adapters is None:
        weights: dict[str, Weight] = {own.adapter: 1.0} if own.adapter is not None else {}
    else:
        weights = adapter_weights(list(request.adapters), list(request.adapters.values()))
        if own.adapter is not None and own.adapter not in weights:
            notes.append(f"adapters: task {task} is meant for {own.adapter!r}, which is not active")
    if request.sampler is not None and not isinstance(request.sampler, str):
        raise UsageError(mismatch("sampler", "KIND or KIND:STEPS", repr(request.sampler), 'write "euler:20"'))
    joint, wishes = joint_defaults(weights, presets, AdapterDefaults(sampler=request.sampler, guidance=request.guidance_scale))
    sampled = with_defaults(own, joint, presets.samplers)
    spec = with_overrides(task, sampled, request, schedule)
    if spec.sampler.kind != sampled.sampler.kind:
        notes.append(f"sampler olss has a table for {sampled.sampler.steps} steps alone: {sampler_text(spec.sampler)} took its place")
    told, tiny = (*notes, *wishes, *trigger_notes(weights, presets, request.prompt)), flag("tiny_decoder", request.tiny_decoder)
    return Resolved(task=task, spec=spec, weights=weights, notes=told, reuse=_reuse(request.reuse), tiny_decoder=tiny)


def choose_task(name: str | None, active: Sequence[str], tasks: Mapping[str, TaskSpec]) -> str:
    """The task of a call: the one of that name, else that of the active adapter, else text-to-image.

    Raises:
        UsageError: the bundle has no such task; the message lists those it has.
    """
    if name is None:
        name = next((task for adapter in active for task, spec in tasks.items() if spec.adapter == adapter), TEXT_TO_IMAGE)
    return one_of("task", name, sorted(tasks))


def choose_size(sizes: Sequence[PictureSize], width: int | None, height: int | None) -> PictureSize:
    """The first of these sizes that has the width and height asked for, None for any.

    Raises:
        UsageError: there is none; the message lists those there are.
    """
    for name, pixels in (("width", width), ("height", height)):
        if pixels is not None:
            whole_number(name, pixels)
    for size in sizes:
        if width in (None, size.width) and height in (None, size.height):
            return size
    asked = PictureSize(sizes[0].width if width is None else width, sizes[0].height if height is None else height)
    expected = f"one of the bundle's sizes, {', '.join(map(str, sizes))}"
    raise UsageError(mismatch("width, height", expected, asked, "choose one, or build for another: quad build --size, multiples of 64"))


def with_steps(sampler: SamplerSpec, steps: int | None, schedule: NoiseSchedule) -> SamplerSpec:
    """The task's sampler with another number of steps; an OLSS table is solved for its own, so that `OLSS_STAND_IN` takes its place.

    Raises:
        UsageError: out of range.
    """
    if steps is None or (steps := whole_number("num_inference_steps", steps)) == sampler.steps:
        return sampler
    if not 1 <= steps <= schedule.steps:
        raise UsageError(mismatch("num_inference_steps", f"1 to {schedule.steps}", steps, "choose one in that range"))
    if sampler.kind == "olss":
        return SamplerSpec(kind=OLSS_STAND_IN, steps=steps, settings=sampler.settings)
    return msgspec.structs.replace(sampler, steps=steps)


def with_overrides(task: str, spec: TaskSpec, request: Request, schedule: NoiseSchedule) -> TaskSpec:
    """The task as one request runs it.

    Raises:
        UsageError: a number out of its range, or one that the task does not have.
    """
    changes: dict[str, object] = {"sampler": with_steps(spec.sampler, request.num_inference_steps, schedule)}
    if (strength := request.strength) is not None:
        if not spec.reads_picture:
            raise UsageError(
                mismatch("strength", f"a task that begins at a picture, which {task} does not", strength, "name one, or leave it out")
            )
        changes["strength"] = share = number(strength)
        if not 0.0 < share <= 1.0:
            raise UsageError(mismatch("strength", "more than 0, at most 1", strength, "choose one in that range"))
    if request.guidance_scale is not None:
        changes["guidance"] = _guidance("guidance_scale", request.guidance_scale)
    if (scale := request.image_guidance_scale) is not None:
        if spec.image_guidance is msgspec.UNSET:
            reason = f"{task}, which has none"
            raise UsageError(mismatch("image_guidance_scale", "a task with picture guidance", reason, "leave it out"))
        changes["image_guidance"] = _guidance("image_guidance_scale", scale)
    if request.guidance_interval is not None:
        changes["guidance_interval"] = parse_interval(request.guidance_interval)
    changed = msgspec.structs.replace(spec, **changes)
    return changed if request.strength is not None else reachable_strength(changed)


def _reuse(value: Any) -> int:
    every = whole_number("reuse", value)
    if not 1 <= every <= MOST_REUSE:
        raise UsageError(mismatch("reuse", f"1 to {MOST_REUSE}", every, "1 computes every step whole, 2 or 3 save most"))
    return every


def _guidance(name: str, value: Any) -> float:
    scale = number(value)
    if not math.isfinite(scale):
        raise UsageError(mismatch(name, "a finite number", value, "choose another"))
    check_guidance(name, scale)
    return scale
