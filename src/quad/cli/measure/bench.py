"""`quad bench`: what a bundle costs on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quad.cli.shared_options import BundleDir, EngineName, FloatType, Threads, check_report_dir
from quad.cli.show import Json, result, stage_bar

if TYPE_CHECKING:
    from quad.evaluate.bench.results import BenchResult

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
    float_type: FloatType = "auto",
    threads: Threads = None,
    repeats: Repeats = 15,
    task: Tasks = None,
    out: ReportDir = None,
    as_json: Json = False,
) -> None:
    """Measure a bundle here: milliseconds, switch time, ROM, peak memory."""
    check_report_dir(out, "bench.json", "bench.html")
    from quad.evaluate.bench.bench import BenchOptions
    from quad.evaluate.bench.page import write_bench
    from quad.evaluate.bench.process import measure

    with stage_bar() as progress:
        options = BenchOptions(path=bundle, engine=engine, float_type=float_type, threads=threads, repeats=repeats, tasks=tuple(task or ()))
        measured = measure(options, progress)
    if out is not None:
        write_bench(measured, out)
    result(measured, as_json, _lines(measured, out))


def _lines(measured: BenchResult, out: Path | None) -> list[str]:
    from quad.evaluate.bench.page import PAGE_FILE, machine_line
    from quad.evaluate.bench.tables import tables
    from quad.evaluate.page.table import text_lines

    lines = [line for table in tables(measured) for line in text_lines(table)] + [machine_line(measured)]
    return lines if out is None else [*lines, str(out / PAGE_FILE)]
