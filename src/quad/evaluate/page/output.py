"""The files that an evaluation writes beside its page: JSON and pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from quad.core.storage.files import new_file, write_bytes
from quad.evaluate.figures.runs import TaskRun
from quad.evaluate.page.report import difference


def write_json(path: Path, value: Any) -> None:
    """One readable JSON file, whole or not at all."""
    write_bytes(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def write_png(path: Path, picture: NDArray[np.uint8]) -> None:
    """One picture, whole or not at all."""
    with new_file(path) as stream:
        Image.fromarray(picture).save(stream, "PNG")


def save_pictures(run: TaskRun, folder: Path) -> None:
    """PNG files of one task: `NN_input`, `NN_fp32`, `NN_quantized`, `NN_difference`, `NN_truth`."""
    for i, sample in enumerate(run.samples):
        by_name: dict[str, NDArray[np.uint8] | None] = {
            "input": sample.image,
            "mask": sample.mask,
            "fp32": run.fp[i],
            "quantized": run.quantized[i],
            "difference": difference(run.fp[i], run.quantized[i]),
            "truth": sample.truth,
        }
        for name, picture in by_name.items():
            if picture is not None:
                write_png(folder / f"{i:02d}_{name}.png", picture)
