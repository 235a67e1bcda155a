"""`quad bench`: what a bundle costs on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from quad.cli.shared_options import BundleDir, EngineName, Threads, check_report_dir
from quad.cli.show import Json, result, stage_bar

Repeats = Annotated[int, typer.Option(help="Timed calls of each graph.", metavar="N", min=1)]
Tasks = Annotated[
    list[str] | None,
    typer.Option("--task", help="Time whole pictures of this task only; repeat it. All by default.", metavar="TASK", show_default=False),
]
ReportDir = Annotated[
    Path | None, typer.Option("-o", "--out", help="Write bench.json and bench.html here.", metavar="DIR", show_default=False)
]


def bench(
    bundle: BundleDir,
    engine: EngineName = "auto",
    threads: Threads = None,
    repeats: Repeats = 15,
    task: Tasks = None,
    out: ReportDir = None,
    as_json: Json = False,
) -> None:
    """Measure a bundle here: milliseconds, switch time, ROM, peak memory."""
    check_report_dir(out)
    from quad.evaluate.bench.bench import BenchOptions
    from quad.evaluate.bench.page import write_bench
    from quad.evaluate.bench.process import measure

    with stage_bar() as progress:
        measured = measure(BenchOptions(bundle, engine, threads, repeats, tuple(task or ())), progress)
    if out is not None:
        write_bench(measured, out)
    result(measured, as_json, _lines(measured, out))


def _lines(measured: dict[str, Any], out: Path | None) -> list[str]:
    from quad.evaluate.bench.page import PAGE_FILE, machine_line
    from quad.evaluate.bench.tables import grids, text_lines

    lines = [line for grid in grids(measured) for line in text_lines(grid)] + [machine_line(measured)]
    return lines if out is None else [*lines, str(out / PAGE_FILE)]
