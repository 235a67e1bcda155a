"""Calibration samples for a model of which nothing is known but its tasks: few and short, because a full-size U-Net answers in seconds."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from quad.quantize.observe.calibrate import CalibrationSample
from quad.runtime.request import TEXT_TO_IMAGE

PER_ADAPTER = 3
# So many answers in all are what a plain model's samples cost, with samplers that ask once a step and both sides of guidance counted. One
# adapter has at most PER_ADAPTER samples, and always one, whatever that costs.
UNET_CALLS = 150
# Steps of those samples, in turns: coarser than the pictures' own, and different, so that together they visit many timesteps.
STEPS = (5, 4, 6)
CALLS_PER_SAMPLE = 2 * 5
# What a plain model does beside text-to-image, one of each way: begin at a picture, and be held to one.
PICTURE_TASKS = ("transform", "removal")
# Many kinds of picture in few words.
PROMPTS = (
    "a photo of a house with a garden, sunny day",
    "portrait of a smiling woman, soft light",
    "a cat sitting on a wooden table, close up",
    "snowy mountains at night under the stars",
    "a plate of colourful fruit on a white background",
    "pencil drawing of an old city street",
)

Picture = tuple[NDArray[np.uint8], NDArray[np.uint8]]


def short_samples(
    tasks: Mapping[str, str | None], adapters: Collection[str], picture: Callable[[int], Picture]
) -> tuple[CalibrationSample, ...]:
    """The base's ways with a picture and without, then every adapter at its own task; `UNET_CALLS` in all, more or less.

    Args:
        tasks: task -> its adapter, None for the base's own.
        adapters: names of those that are built in; one that no task names makes pictures from text, or edits one where the model makes none
            from text.
        picture: number of a sample -> a picture `(H, W, 3)` and a mask `(H, W)`, 255 inside.
    """
    if not tasks:
        return ()
    main = TEXT_TO_IMAGE if TEXT_TO_IMAGE in tasks else "transform"
    calls: list[tuple[str, str | None]] = [
        (main, None),
        *((task, None) for task in (main, *PICTURE_TASKS) if task in tasks and tasks[task] is None),
    ]
    task_of = {adapter: task for task, adapter in tasks.items() if adapter is not None}
    spare = UNET_CALLS // CALLS_PER_SAMPLE - len(calls)
    for _ in range(min(PER_ADAPTER, max(1, spare // max(1, len(adapters))))):
        calls += [(task_of.get(name, main), name) for name in adapters]
    return tuple(_sample(task, adapter, index, picture(index)) for index, (task, adapter) in enumerate(calls))


def _sample(task: str, adapter: str | None, index: int, picture: Picture) -> CalibrationSample:
    image, mask = picture
    return CalibrationSample(
        task=task, prompt=PROMPTS[index % len(PROMPTS)], image=image, mask=mask, adapter=adapter, steps=STEPS[index % len(STEPS)]
    )
