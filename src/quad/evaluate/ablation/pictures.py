"""Pictures that `quad ablate` keeps of its rows, for the page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from quad.evaluate.figures.runs import Pictures
from quad.evaluate.page.output import write_png

KEPT_PICTURES = 2  # of each row and task


def picture_file(out: Path, row: str, task: str, index: int) -> Path:
    """The file of a row's picture; row `fp32` is the full-precision side."""
    return _file(out, _name(row, task, index))


def first_pictures(row: str, task: str, pictures: Pictures) -> dict[str, Pictures]:
    """The first few of a row's pictures of a task, by name."""
    return {_name(row, task, index): picture for index, picture in enumerate(pictures[:KEPT_PICTURES])}


def keep_pictures(out: Path, pictures: Mapping[str, Pictures]) -> None:
    """Write pictures by name."""
    for name, picture in pictures.items():
        write_png(_file(out, name), picture)


def _name(row: str, task: str, index: int) -> str:
    return f"{row}/{task}_{index}"


def _file(out: Path, name: str) -> Path:
    return out / "pictures" / f"{name}.png"
