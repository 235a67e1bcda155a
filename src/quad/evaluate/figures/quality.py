"""The quality table for one maker of pictures: every row with its bar, its control and an honest yes or no."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from quad.core.errors import InputError, UnsupportedError, mismatch
from quad.core.progress import Progress, silent
from quad.core.storage.reading import entry_names, is_file
from quad.evaluate.figures import metrics
from quad.evaluate.figures.evaluation import Scores
from quad.evaluate.figures.reference import PictureRequest, Reference
from quad.evaluate.figures.scores import SCORERS, score
from quad.model.base.open import WORLD_FILE
from quad.zoo.judge import Judge
from quad.zoo.reference import ADAPTER_FILE, reference_dir
from quad.zoo.samples import FEW_STEPS, Sample, sample, with_samples

Pictures = NDArray[np.uint8]
HELD_OUT = 10**9


@dataclass(frozen=True, kw_only=True)
class QualityFigure:
    """One row of the table; `bar` None is shown for comparison only."""

    name: str
    value: float
    unit: str
    bar: float | None = None
    note: str = ""

    @property
    def passed(self) -> bool | None:
        """Is the bar reached; None where there is none."""
        return None if self.bar is None else bool(self.value >= self.bar)


@dataclass(frozen=True, kw_only=True)
class QualityRow:
    """The origin of a figure: score `key` of `task`, its bar, and the controls shown beside it, `(key, label)`."""

    task: str
    key: str
    name: str
    bar: float
    controls: tuple[tuple[str, str], ...] = ()


FILLS = (("nearest_db", "nearest edge"), ("ring_db", "ring mean"))
FILLS_POOLED = (("nearest_pooled_db", "nearest edge"), ("ring_pooled_db", "ring mean"))
ROWS = (
    QualityRow(task="removal", key="inside_pooled_db", name="removal, inside the object", bar=26.0, controls=FILLS_POOLED),
    QualityRow(task="removal", key="gain_pooled_db", name="removal, over the better fill", bar=4.0),
    QualityRow(task="removal", key="inside_db", name="removal, inside, mean of pictures", bar=26.0, controls=FILLS),
    QualityRow(task="removal", key="gain_db", name="removal, over the better fill, mean of pictures", bar=4.0),
    QualityRow(task="text-to-image", key="sky", name="text-to-image, sky", bar=0.95),
    QualityRow(task="text-to-image", key="ground", name="text-to-image, ground", bar=0.95),
    QualityRow(task="text-to-image", key="skin", name="text-to-image, skin", bar=0.95),
    QualityRow(
        task="text-to-image",
        key="kind",
        name="text-to-image, object kind at its place",
        bar=0.75,
        controls=(("kind_anywhere", "anywhere"),),
    ),
    QualityRow(task="text-to-image", key="kind_colour", name="text-to-image, kind and colour", bar=0.60),
    QualityRow(task="text-to-image", key="expression", name="text-to-image, expression", bar=0.70),
    QualityRow(task=FEW_STEPS, key="kind", name="few-steps, object kind at its place", bar=0.75),
    QualityRow(task=FEW_STEPS, key="kind_colour", name="few-steps, kind and colour", bar=0.60),
    QualityRow(task="transform", key="changed", name="transform, asked attribute changed", bar=0.80),
    QualityRow(task="transform", key="kept", name="transform, others kept", bar=0.90),
    QualityRow(task="sketch", key="edges", name="sketch, edges within 2 px", bar=0.70, controls=(("edges_control", "another picture"),)),
    QualityRow(
        task="sticker", key="outline", name="sticker, white outline on flat ground", bar=0.90, controls=(("object", "right object"),)
    ),
    QualityRow(task="portrait", key="face", name="portrait, face attributes kept", bar=0.80),
    QualityRow(task="portrait", key="style", name="portrait, asked style applied", bar=0.90),
)


def check_world(model: Path) -> None:
    """Refuse a model whose pictures have no known truth.

    Raises:
        InputError: there is no such directory. UnsupportedError: it is not of the reference world.
    """
    if not model.is_dir():
        raise InputError(mismatch(str(model), "a diffusers model directory", "none", "check the path, or name toyland"))
    if not (model / WORLD_FILE).is_file():
        limit = "for any other model read `alignment` of quad build --json, or compare with a bundle of --precision float, seed by seed"
        raise UnsupportedError(mismatch(str(model), f"a model with {WORLD_FILE}", "none", limit))


def find_adapters(model: Path) -> dict[str, Path]:
    """The adapters that a model directory brings, by name."""
    folder = model / "adapters"
    return {name: file for name in entry_names(folder) if is_file(file := folder / name / ADAPTER_FILE)}


def held_out(task: str, n: int, size: int = 64) -> list[Sample]:
    """The first `n` samples that training never sees, pictures of `size` pixels."""
    return [sample(task, HELD_OUT + i, size) for i in range(n)]


def picture_requests(samples: Sequence[Sample], first_seed: int = 0) -> list[PictureRequest]:
    """The requests of samples; picture i starts from the noise of seed `first_seed + i`."""
    return [PictureRequest(prompt=s.prompt, seed=first_seed + i, image=s.image, mask=s.mask) for i, s in enumerate(samples)]


def vae_figures(reference: Reference, samples: dict[str, list[Sample]]) -> list[QualityFigure]:
    """PSNR and SSIM of the autoencoder on held-out truths of all tasks."""
    pictures = np.stack([s.truth for rows in samples.values() for s in rows])
    again = reference.reconstruct(pictures)
    psnr = float(np.mean([metrics.psnr(a, b) for a, b in zip(pictures, again, strict=True)]))
    ssim = float(np.mean([metrics.ssim(a, b) for a, b in zip(pictures, again, strict=True)]))
    note = f"{len(pictures)} held-out pictures of all tasks"
    return [
        QualityFigure(name="VAE, PSNR", value=psnr, unit="dB", bar=30.0, note=note),
        QualityFigure(name="VAE, SSIM", value=ssim, unit="", bar=0.93, note=note),
    ]


def _unit(key: str) -> str:
    return "dB" if key.endswith("_db") else "%"


def _shown(value: float, unit: str) -> str:
    return f"{value:.1f} dB" if unit == "dB" else f"{100 * value:.0f} %"


def task_figures(scores: dict[str, Scores], ceilings: dict[str, Scores], counts: dict[str, int]) -> list[QualityFigure]:
    """The rows of the quality table that the scores reach; the VAE ceiling and the controls stand in the note.

    Args:
        scores: task -> scores of the pictures.
        ceilings: task -> scores of the truths sent through the VAE.
        counts: task -> samples.
    """
    figures = []
    for row in ROWS:
        if row.task not in scores or row.key not in scores[row.task]:
            continue
        unit = _unit(row.key)
        parts = [f"n = {counts[row.task]}"]
        if row.key in ceilings.get(row.task, {}):
            parts.append(f"VAE ceiling {_shown(ceilings[row.task][row.key], unit)}")
        parts += [f"{label} {_shown(scores[row.task][key], unit)}" for key, label in row.controls if key in scores[row.task]]
        figures.append(QualityFigure(name=row.name, value=scores[row.task][row.key], unit=unit, bar=row.bar, note=", ".join(parts)))
    return figures


def ceilings_of(reference: Reference, samples: dict[str, list[Sample]], judge: Judge) -> dict[str, Scores]:
    """Scores of the truths themselves after the VAE: what no sampler can beat."""
    return {task: score(task, rows, reference.reconstruct(np.stack([s.truth for s in rows])), judge) for task, rows in samples.items()}


def quality_table(directory: Path, adapters: dict[str, Path], n: int = 128, progress: Progress = silent) -> list[QualityFigure]:
    """The whole FP32 table of a Toyland model directory, on `n` held-out samples a task.

    Args:
        directory: diffusers directory with `toyland.json`.
        adapters: name -> LoRA file; tasks whose adapter is missing are left out.
    """
    reference, judge = Reference(directory, adapters), Judge.load()
    tasks = [task for task in with_samples(reference.tasks) if reference.tasks[task].adapter in (None, *adapters)]
    samples = {task: held_out(task, n, reference.picture_size.width) for task in tasks if task in SCORERS}
    scores: dict[str, Scores] = {}
    for i, (task, rows) in enumerate(samples.items()):
        progress(task, i / len(samples))
        scores[task] = score(task, rows, reference.pictures(task, picture_requests(rows)), judge)
    counts = {task: len(rows) for task, rows in samples.items()}
    return vae_figures(reference, samples) + task_figures(scores, ceilings_of(reference, samples, judge), counts)


def main(
    model: Annotated[Path | None, typer.Argument(help="model directory; the shipped reference by default")] = None,
    n: Annotated[int, typer.Option(help="held-out samples a task")] = 128,
) -> None:
    """Print the FP32 quality table of a model directory as one JSON object."""
    directory = model or reference_dir()
    table = quality_table(directory, find_adapters(directory), n, lambda task, share: print(f"{share:4.0%} {task}", file=sys.stderr))
    print(json.dumps([{**asdict(figure), "passed": figure.passed} for figure in table], indent=1))


if __name__ == "__main__":
    typer.run(main)
