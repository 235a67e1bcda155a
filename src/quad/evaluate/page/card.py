"""The model card of a Toyland model directory: what it was trained on, how good it is, and pictures of every task.

`python -m quad.evaluate.page.card [MODEL]` writes `README.md`, `quality.json` and `grid.png` into the directory.
"""

from __future__ import annotations

import io
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from PIL import Image

from quad.core.storage.files import write_bytes
from quad.evaluate.figures.quality import QualityFigure, find_adapters, held_out, picture_requests, quality_table
from quad.evaluate.figures.reference import Reference
from quad.zoo.reference import MODELS, NAME, reference_dir
from quad.zoo.samples import with_samples

COLUMNS = 8
SHOWN_PX = 128  # of one picture; smaller ones are enlarged
GAP = 6
PROSE = {name: Path(__file__).parent / file for name, file in zip(MODELS, ("card.md", "card-xl.md"), strict=True)}


def task_rows(reference: Reference, task: str) -> list[NDArray[np.uint8]]:
    """Rows of pictures `(S, COLUMNS * S, 3)`: what the model was given (if any), what it made, and the truth."""
    samples = held_out(task, COLUMNS, reference.picture_size.width)
    drawn = list(reference.pictures(task, picture_requests(samples)))
    rows = [[s.image for s in samples if s.image is not None], drawn, [s.truth for s in samples]]
    return [np.concatenate(row, axis=1) for row in rows if row]


def grid(reference: Reference) -> Image.Image:
    """All tasks below each other, enlarged, with a gap between tasks."""
    parts = []
    for task in with_samples(reference.tasks):
        rows = np.concatenate(task_rows(reference, task), axis=0)
        parts += [rows, np.full((GAP, rows.shape[1], 3), 255, np.uint8)]
    picture = Image.fromarray(np.concatenate(parts[:-1], axis=0))
    factor = SHOWN_PX // reference.picture_size.width
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def table(figures: list[QualityFigure]) -> str:
    """The quality table in Markdown; misses are named as such."""
    lines = ["| figure | measured | bar | | |", "|---|---|---|---|---|"]
    for figure in figures:
        scale = 100.0 if figure.unit == "%" else 1.0
        bar = "" if figure.bar is None else f"{figure.bar * scale:g}"
        verdict = {None: "", True: "reached", False: "**missed**"}[figure.passed]
        digits = 3 if not figure.unit else 1
        lines.append(f"| {figure.name} | {figure.value * scale:.{digits}f} {figure.unit} | {bar} | {verdict} | {figure.note} |")
    return "\n".join(lines)


def main(
    model: Annotated[Path | None, typer.Argument(help="model directory; the shipped reference by default")] = None,
    n: Annotated[int, typer.Option(help="held-out samples a task")] = 128,
) -> None:
    """Measure a model directory and write its card."""
    directory = model or reference_dir()
    adapters = find_adapters(directory)
    figures = quality_table(directory, adapters, n, lambda task, share: print(f"{share:4.0%} {task}", file=sys.stderr))
    buffer = io.BytesIO()
    grid(Reference(directory, adapters)).save(buffer, "PNG", optimize=True)
    write_bytes(directory / "grid.png", buffer.getvalue())
    prose = PROSE.get(directory.name, PROSE[NAME])
    rows = [{**asdict(figure), "passed": figure.passed} for figure in figures]
    write_bytes(directory / "quality.json", (json.dumps(rows, indent=1) + "\n").encode())
    write_bytes(directory / "README.md", prose.read_text().replace("<!-- table -->", table(figures)).encode())


if __name__ == "__main__":
    typer.run(main)
