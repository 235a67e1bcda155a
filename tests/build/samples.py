"""Calibration samples of the small model, one a task, and a picture of each from a pipeline."""

from __future__ import annotations

import numpy as np

from quad.quantize.observe.calibrate import CalibrationSample
from quad.runtime.pipeline import QuadPipeline


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (16, 16, 3), dtype=np.uint8)


def hole() -> np.ndarray:
    mask = np.zeros((16, 16), np.uint8)
    mask[4:12, 4:12] = 255
    return mask


SAMPLES = (
    CalibrationSample(task="text-to-image", prompt="a red house"),
    CalibrationSample(task="transform", prompt="a tree", image=picture(0)),
    CalibrationSample(task="removal", prompt="a house", image=picture(1), mask=hole()),
)


def run(pipe: QuadPipeline, task: str) -> np.ndarray:
    sample = next(sample for sample in SAMPLES if sample.task == task)
    return np.asarray(pipe(sample.prompt, task=task, image=sample.image, mask_image=sample.mask, seed=3).images[0])
