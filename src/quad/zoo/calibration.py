"""Calibration samples: calls of the pipeline whose ranges a profile must hold, rendered in Toyland or, for other models, prompts alone."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from quad.model.base import WORLD_FILE
from quad.quantize.calibrate import CalibrationSample
from quad.zoo.samples import TASKS, sample

PER_TASK = 6
PER_ADAPTER = 3
TEXT_TO_IMAGE = "text-to-image"
# For a model of which nothing is known: many kinds of picture in few words.
PROMPTS = (
    "a photo of a house with a garden, sunny day",
    "portrait of a smiling woman, soft light",
    "a cat sitting on a wooden table, close up",
    "snowy mountains at night under the stars",
    "a plate of colourful fruit on a white background",
    "pencil drawing of an old city street",
)


def calibration_samples(model: Path, adapters: Collection[str]) -> tuple[CalibrationSample, ...]:
    """Samples for a model and the adapters it is built with.

    Toyland's tasks get rendered samples with seeds from 0, far below the held-out ones.
    An adapter that no task names makes pictures from text.

    Args:
        model: a diffusers directory; one with `toyland.json` is of the reference world.
    """
    tasks = _task_adapters(model / WORLD_FILE)
    rendered = [_rendered(task, seed) for task in TASKS if task in tasks for seed in range(PER_TASK)]
    plain = [] if rendered else [CalibrationSample(TEXT_TO_IMAGE, prompt) for prompt in PROMPTS]
    prompts = [_rendered(TEXT_TO_IMAGE, seed).prompt for seed in range(PER_ADAPTER)] if rendered else PROMPTS[:PER_ADAPTER]
    extra = [
        CalibrationSample(TEXT_TO_IMAGE, prompt, adapter=name) for name in adapters if name not in tasks.values() for prompt in prompts
    ]
    return (*rendered, *plain, *extra)


def _task_adapters(file: Path) -> dict[str, str | None]:
    """Task -> its adapter, of `toyland.json`; none where there is no such file. Whether it is well-formed is `open_model`'s to say."""
    try:
        tasks = json.loads(file.read_bytes()).get("tasks", {})
        return {str(task): spec.get("adapter") for task, spec in tasks.items()}
    except (OSError, ValueError, AttributeError):
        return {}


def _rendered(task: str, seed: int) -> CalibrationSample:
    drawn = sample(task, seed)
    return CalibrationSample(task, drawn.prompt, drawn.image, drawn.mask, truth=drawn.truth)
