"""`make demo`: the shipped reference model becomes a bundle, all six tasks run from it, and a page shows what came out.

build -> run both sides -> score -> laws -> bench (own process) -> report
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from safetensors import safe_open

from quad.build.build import build
from quad.build.request import BuildRequest
from quad.core.errors import QuadError, UsageError, mismatch
from quad.core.storage.files import write_bytes
from quad.evaluate.bench.bench import BenchOptions
from quad.evaluate.bench.process import measure
from quad.evaluate.figures import laws
from quad.evaluate.figures.effect import bundle_effects
from quad.evaluate.figures.quality import find_adapters, vae_figures
from quad.evaluate.figures.reference import Reference
from quad.evaluate.figures.runs import Show, evaluate_all, run_tasks
from quad.evaluate.page.output import save_pictures, write_json
from quad.evaluate.page.report import render
from quad.evaluate.page.summary import Measured, make_report
from quad.evaluate.page.tables import quality_rows
from quad.runtime.pipeline import QuadPipeline
from quad.zoo.calibration import calibration_samples
from quad.zoo.reference import reference_dir

DEFAULT_OUT = Path("out/demo")
# Shares of the whole that the bar gives to each stage, from runs on two cores.
SHARES = {"build": 30, "run": 50, "score": 8, "measure": 12}
FP16_BYTES = 2


@dataclass(frozen=True)
class Place:
    """Where the demo reads and writes."""

    model: Path
    adapters: Mapping[str, Path]
    out: Path

    @property
    def bundle(self) -> Path:
        return self.out / "bundle"


def fp16_bytes(place: Place) -> dict[str, Any]:
    """What the same weights take as fp16 files: base (with its tokenizer) and adapters."""

    def size(file: Path) -> int:
        with safe_open(file, "np") as tensors:
            return sum(FP16_BYTES * int(np.prod(tensors.get_slice(name).get_shape())) for name in tensors.keys())  # noqa: SIM118

    parts = [place.model / part for part in ("unet", "vae", "text_encoder")]
    weights = sum(size(file) for part in parts for file in part.glob("*.safetensors"))
    tokenizer = (place.model / "tokenizer" / "tokenizer.json").stat().st_size
    return {"shared": weights + tokenizer, "adapters": {name: size(file) for name, file in place.adapters.items()}}


def build_bundle(place: Place, show: Show) -> dict[str, Any]:
    """Build the bundle; returns the object of `quad build --json`."""
    samples = calibration_samples(place.model, place.adapters)
    request = BuildRequest(place.model, place.adapters, place.bundle, samples, name="toyland")
    made = build(request, lambda stage, share: show(f"build: {stage}", share)).to_json()
    return {**made, "precision": request.precision}


def demo(place: Place, n: int, show: Callable[[str, str, float], None]) -> Measured:
    """The whole demo; writes everything below `place.out`.

    Args:
        n: held-out samples a task.
        show: called with stage, what is being done, and the stage's share done.

    Raises:
        QuadError: as the parts raise; files written so far stay.
    """
    start = time.perf_counter()
    made = build_bundle(place, lambda what, share: show("build", what, share))
    write_json(place.out / "build.json", made)
    reference, pipe = Reference(place.model, dict(place.adapters)), QuadPipeline.from_pretrained(place.bundle)
    runs = run_tasks(reference, pipe, n, lambda what, share: show("run", f"run: {what}", share))
    for run in runs:
        save_pictures(run, place.out / "pictures" / run.task)
    show("score", "adapter effect", 0.0)
    effects = bundle_effects(pipe, reference, place.model, place.adapters)
    evaluation = evaluate_all(runs, reference, pipe.engine, effects, lambda what, share: show("score", f"score: {what}", share))
    vae = vae_figures(reference, {run.task: list(run.samples) for run in runs})
    show("measure", "laws", 0.0)
    held = {
        "slotted": laws.slotted_error(place.model, dict(place.adapters), reference),
        "switching": laws.switching_is_exact(pipe),
        "import": laws.runtime_import(),
    }
    write_json(place.out / "eval.json", {**evaluation, "laws": held, "vae": {figure.name: figure.value for figure in vae}})
    bench = measure(BenchOptions(place.bundle), lambda what, share: show("measure", f"bench: {what}", 0.3 + 0.6 * share))
    write_json(place.out / "bench.json", bench)
    show("measure", "report", 0.9)
    seconds = time.perf_counter() - start
    measured = Measured(runs, made, evaluation, bench, held, fp16_bytes(place), vae, seconds)
    write_bytes(place.out / "report.html", render(make_report(measured)).encode())
    show("measure", "done", 1.0)
    return measured


def _tell(measured: Measured, out: Path, console: Console) -> None:
    sides = [figure for pair in quality_rows(measured.evaluation["tasks"], measured.vae) for figure in pair if figure is not None]
    reached = sum(1 for figure in sides if figure.passed)
    for task, entry in measured.evaluation["tasks"].items():
        console.print(f"  {task:<14} {entry['psnr']:5.1f} dB, SSIM {entry['ssim']:.3f} against FP32, n = {entry['n']}")
    console.print(f"  {reached} of {len(sides)} bars against the truth reached")
    console.print(f"{out / 'report.html'}  (bundle, build.json, eval.json, bench.json and pictures beside it; {measured.seconds:.0f} s)")


def main(
    n: Annotated[int, typer.Option(help="held-out samples a task")] = 16,
    out: Annotated[Path, typer.Option(help="the directory to write")] = DEFAULT_OUT,
    model: Annotated[Path | None, typer.Option(help="model directory; the shipped reference by default")] = None,
) -> None:
    """Build the bundle of the reference model, run all six tasks from it, write the report."""
    if n < 2:
        raise UsageError(mismatch("--n", "2 or more", n, "choose a larger one"))
    directory = model or reference_dir()
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    columns = (TextColumn("{task.description:<24}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("demo", total=sum(SHARES.values()))

        def show(stage: str, what: str, share: float) -> None:
            before = sum(size for name, size in SHARES.items() if list(SHARES).index(name) < list(SHARES).index(stage))
            progress.update(bar, description=what, completed=before + share * SHARES[stage])

        measured = demo(Place(directory, find_adapters(directory), out), n, show)
    _tell(measured, out, console)


if __name__ == "__main__":
    try:
        typer.run(main)
    except QuadError as error:
        print(f"demo: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
