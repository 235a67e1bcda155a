"""`make demo`: the command line of the demo, and the bar that shows how far it is."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from quad.core.errors import QuadError, UsageError, mismatch
from quad.evaluate.demo_run import DemoPaths, demo
from quad.evaluate.figures.quality import find_adapters
from quad.evaluate.page.summary import DemoResult
from quad.evaluate.page.tables import quality_rows
from quad.zoo.reference import reference_dir

DEFAULT_OUT = Path("out/demo")
# Shares of the whole that the bar gives to each stage, from runs on two cores.
SHARES = {"build": 62, "run": 17, "score": 4, "measure": 17}


def _print_summary(measured: DemoResult, out: Path, console: Console) -> None:
    sides = [figure for pair in quality_rows(measured.evaluation.tasks, measured.vae) for figure in pair if figure is not None]
    reached = sum(1 for figure in sides if figure.passed)
    for task, entry in measured.evaluation.tasks.items():
        console.print(f"  {task:<14} {entry.psnr:5.1f} dB, SSIM {entry.ssim:.3f} against FP32, n = {entry.n}")
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

        def show(stage: str, step: str, share: float) -> None:
            if not console.is_terminal and progress.tasks[bar].description != step:
                console.print(step)  # a log has no bar
            before = sum(size for name, size in SHARES.items() if list(SHARES).index(name) < list(SHARES).index(stage))
            progress.update(bar, description=step, completed=before + share * SHARES[stage])

        measured = demo(DemoPaths(directory, find_adapters(directory), out), n, show)
    _print_summary(measured, out, console)


if __name__ == "__main__":
    try:
        typer.run(main)
    except QuadError as error:
        print(f"demo: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
