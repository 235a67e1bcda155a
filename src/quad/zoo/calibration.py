"""Calibration samples, rendered in Toyland: the tasks of the reference model, or pictures for the short samples of any other model."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quad.build.calls.short_samples import PER_ADAPTER, short_samples
from quad.core.errors import QuadError
from quad.model.base.default_tasks import tasks_of
from quad.model.base.open import WORLD_FILE
from quad.model.base.weight_files import read_config
from quad.quantize.observe.calibrate import CalibrationSample
from quad.runtime.request import TEXT_TO_IMAGE
from quad.zoo.draw import draw_mask, draw_scene
from quad.zoo.samples import sample, with_samples
from quad.zoo.world import sample_scene

PER_TASK = 6
SIZE = 64
PICTURE_PX = 256
GRAIN = 10.0


def calibration_samples(model: Path, adapters: Collection[str]) -> tuple[CalibrationSample, ...]:
    """Samples for a model and the adapters it is built with.

    Toyland's tasks get rendered samples with seeds from 0, far below the held-out ones.
    An adapter that no task names makes pictures from text, or edits one where the model makes none from text.

    Args:
        model: a diffusers directory; one with `toyland.json` is of the reference world.
    """
    tasks, size = _tasks_and_size(model / WORLD_FILE)
    rendered = [_rendered(task, seed, size) for task in with_samples(tasks) for seed in range(PER_TASK)]
    if not rendered:
        return short_samples(tasks_of(model, adapters), adapters, _picture)
    prompts = [_rendered(TEXT_TO_IMAGE, seed, size).prompt for seed in range(PER_ADAPTER)]
    extra = [
        CalibrationSample(task=TEXT_TO_IMAGE, prompt=prompt, adapter=name)
        for name in adapters
        if name not in tasks.values()
        for prompt in prompts
    ]
    return (*rendered, *extra)


def _picture(seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A rendered scene with the grain of a photo, and the mask of one toy in it."""
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng)
    grain = rng.normal(0.0, GRAIN, (PICTURE_PX, PICTURE_PX, 1))
    picture = np.clip(draw_scene(scene, PICTURE_PX) + grain, 0, 255).astype(np.uint8)
    return picture, draw_mask(scene.toys[0], PICTURE_PX)


def _tasks_and_size(file: Path) -> tuple[dict[str, str | None], int]:
    """Task -> its adapter, and the pictures' size, of `toyland.json`; no task without one. `open_model` says whether it is well-formed."""
    try:
        world = read_config(file)
        return {str(task): spec.get("adapter") for task, spec in world.get("tasks", {}).items()}, int(world.get("size", SIZE))
    except (QuadError, AttributeError, TypeError, ValueError):
        return {}, SIZE


def _rendered(task: str, seed: int, size: int) -> CalibrationSample:
    drawn = sample(task, seed, size)
    return CalibrationSample(task=task, prompt=drawn.prompt, image=drawn.image, mask=drawn.mask, truth=drawn.truth)
