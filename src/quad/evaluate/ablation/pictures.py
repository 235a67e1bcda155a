"""Pictures that `quad ablate` keeps of its rows, for the page."""

from __future__ import annotations

from pathlib import Path

from quad.evaluate.figures.runs import Pictures
from quad.evaluate.page.output import write_png

KEPT_PICTURES = 2  # of each row and task


def picture_file(out: Path, row: str, task: str, index: int) -> Path:
    """The file of a row's picture; row `fp32` is the full-precision side."""
    return out / "pictures" / row / f"{task}_{index}.png"


def keep_pictures(out: Path, row: str, task: str, pictures: Pictures) -> None:
    """Keep the first few of a row's pictures of a task."""
    for index, picture in enumerate(pictures[:KEPT_PICTURES]):
        write_png(picture_file(out, row, task, index), picture)
