"""What a picture is asked for with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quad.core.errors import UsageError, mismatch
from quad.core.manifest import NoiseSchedule, TaskSpec
from quad.runtime.adapters.weighted_sum import weights_of
from quad.runtime.conditioning.condition import DEFAULT_GROW_PX, Pictures
from quad.runtime.conditioning.picture import PictureSource
from quad.runtime.tasks import Wishes, as_wished, choose_task


@dataclass(frozen=True)
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

    @property
    def pictures(self) -> Pictures:
        return Pictures(self.image, self.mask_image, self.mask_grow)

    @property
    def wishes(self) -> Wishes:
        return Wishes(self.num_inference_steps, self.strength, self.guidance_scale, self.image_guidance_scale)


@dataclass(frozen=True)
class Resolved:
    """A request as a pipeline understands it.

    Args:
        spec: of the task, with what the request wants otherwise.
        weights: adapter name -> weight.
        notes: what the user should be told.
    """

    task: str
    spec: TaskSpec
    weights: dict[str, float]
    notes: tuple[str, ...]


def resolve(request: Request, tasks: Mapping[str, TaskSpec], schedule: NoiseSchedule) -> Resolved:
    """Which task and which adapters a request means.

    Raises:
        UsageError: an unknown task, or a number out of its range.
    """
    for name, text in (("prompt", request.prompt), ("negative_prompt", request.negative_prompt)):
        if not isinstance(text, str):
            raise UsageError(mismatch(name, "one string", type(text).__name__, "call once per prompt"))
        if not _is_unicode(text):
            raise UsageError(mismatch(name, "text in UTF-8", repr(text), "write it again"))
    task = choose_task(request.task, list(request.adapters or ()), tasks)
    spec = as_wished(task, tasks[task], request.wishes, schedule)
    if request.adapters is None:
        return Resolved(task, spec, {spec.adapter: 1.0} if spec.adapter is not None else {}, ())
    weights = weights_of(list(request.adapters), list(request.adapters.values()))
    if spec.adapter is None or spec.adapter in weights:
        return Resolved(task, spec, weights, ())
    return Resolved(task, spec, weights, (f"adapters: task {task} is meant for {spec.adapter!r}, which is not active",))


def _is_unicode(text: str) -> bool:
    """No half of a character, as bytes become that are no text of the terminal's encoding: no tokenizer takes one."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)
