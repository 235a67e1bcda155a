"""Calibration samples: calls of the pipeline whose ranges a profile must hold, rendered in Toyland or, for other models, few and short."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quad.core.errors import QuadError
from quad.model.base.default_tasks import tasks_of
from quad.model.base.open import WORLD_FILE
from quad.model.base.weight_files import read_config
from quad.quantize.observe.calibrate import CalibrationSample
from quad.runtime.request import TEXT_TO_IMAGE
from quad.zoo.draw import draw_mask, draw_scene
from quad.zoo.samples import TASKS, sample
from quad.zoo.world import sample_scene

PER_TASK = 6
PER_ADAPTER = 3
# A full-size U-Net answers in seconds: so many answers in all are what a plain model's samples cost, with samplers that ask once a step and
# both sides of guidance counted. One adapter has at most PER_ADAPTER samples, and always one, whatever that costs.
UNET_CALLS = 150
# Steps of those samples, in turns: coarser than the pictures' own, and different, so that together they visit many timesteps.
STEPS = (5, 4, 6)
CALLS_PER_SAMPLE = 2 * 5
# What a plain model does beside text-to-image, one of each way: begin at a picture, and be held to one.
PICTURE_TASKS = ("transform", "removal")
PICTURE_PX = 256
GRAIN = 10.0
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
    An adapter that no task names makes pictures from text, or edits one where the model makes none from text.

    Args:
        model: a diffusers directory; one with `toyland.json` is of the reference world.
    """
    tasks = _task_adapters(model / WORLD_FILE)
    rendered = [_rendered(task, seed) for task in TASKS if task in tasks for seed in range(PER_TASK)]
    if not rendered:
        return _plain(tasks_of(model, adapters), adapters)
    prompts = [_rendered(TEXT_TO_IMAGE, seed).prompt for seed in range(PER_ADAPTER)]
    extra = [
        CalibrationSample(task=TEXT_TO_IMAGE, prompt=prompt, adapter=name)
        for name in adapters
        if name not in tasks.values()
        for prompt in prompts
    ]
    return (*rendered, *extra)


def _plain(tasks: Mapping[str, str | None], adapters: Collection[str]) -> tuple[CalibrationSample, ...]:
    """The base's ways with a picture and without, then every adapter at its own task; `UNET_CALLS` in all, more or less."""
    if not tasks:
        return ()
    main = TEXT_TO_IMAGE if TEXT_TO_IMAGE in tasks else "transform"
    calls: list[tuple[str, str | None]] = [
        (main, None),
        *((task, None) for task in (main, *PICTURE_TASKS) if task in tasks and tasks[task] is None),
    ]
    own = {adapter: task for task, adapter in tasks.items() if adapter is not None}
    spare = UNET_CALLS // CALLS_PER_SAMPLE - len(calls)
    for _ in range(min(PER_ADAPTER, max(1, spare // max(1, len(adapters))))):
        calls += [(own.get(name, main), name) for name in adapters]
    return tuple(_short(task, adapter, index) for index, (task, adapter) in enumerate(calls))


def _short(task: str, adapter: str | None, index: int) -> CalibrationSample:
    image, mask = _picture(index)
    return CalibrationSample(
        task=task, prompt=PROMPTS[index % len(PROMPTS)], image=image, mask=mask, adapter=adapter, steps=STEPS[index % len(STEPS)]
    )


def _picture(seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A rendered scene with the grain of a photo, and the mask of one thing in it."""
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng)
    grain = rng.normal(0.0, GRAIN, (PICTURE_PX, PICTURE_PX, 1))
    picture = np.clip(draw_scene(scene, PICTURE_PX) + grain, 0, 255).astype(np.uint8)
    return picture, draw_mask(scene.things[0], PICTURE_PX)


def _task_adapters(file: Path) -> dict[str, str | None]:
    """Task -> its adapter, of `toyland.json`; none where there is no such file. Whether it is well-formed is `open_model`'s to say."""
    try:
        return {str(task): spec.get("adapter") for task, spec in read_config(file).get("tasks", {}).items()}
    except (QuadError, AttributeError):
        return {}


def _rendered(task: str, seed: int) -> CalibrationSample:
    drawn = sample(task, seed)
    return CalibrationSample(task=task, prompt=drawn.prompt, image=drawn.image, mask=drawn.mask, truth=drawn.truth)
