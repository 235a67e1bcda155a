"""`quad ablate`: what each choice of a build costs, one bundle a row."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quad.cli.extras import check_build
from quad.cli.options import named_paths
from quad.cli.shared_options import Adapters, DeviceName, Model, Samples, check_report_dir, local_adapters, model_directory
from quad.cli.show import Json, result, stage_bar
from quad.core.device import CPU
from quad.core.processes import speaks

if TYPE_CHECKING:
    from quad.evaluate.ablation.request import AblationRequest
    from quad.evaluate.ablation.results import AblationResult

Output = Annotated[
    Path,
    typer.Option("-o", "--output", help="The directory to write; a killed run goes on from it.", metavar="DIR", show_default=False),
]
Rows = Annotated[
    list[str] | None,
    typer.Option(
        "--rows",
        help="Only these rows or groups, comma-separated; an unknown name lists all.",
        metavar="NAME,...",
        show_default=False,
    ),
]


Later = Annotated[
    list[str] | None,
    typer.Option(
        "--later",
        help="An adapter that no profile is made for, admitted to the bundles of the rows `slots`; again for each. toyland brings its own.",
        metavar="NAME=PATH",
        show_default=False,
    ),
]


def ablate(
    model: Model,
    output: Output,
    adapter: Adapters = None,
    later: Later = None,
    rows: Rows = None,
    n: Samples = 16,
    device: DeviceName = CPU,
    as_json: Json = False,
) -> None:
    """Build and measure one bundle for each choice."""
    adapters, later_files = named_paths("--adapter", adapter or []), named_paths("--later", later or [])
    check_report_dir(output, "rows.json", "cross.json", "cross_hard.json", "ablate.json", "report.html", "pictures/row.png")
    names = [name.strip() for value in rows or [] for name in value.split(",") if name.strip()]
    with stage_bar() as progress, redirect_stdout(sys.stderr), _own_place(output) as place:
        check_build("quad ablate")
        from quad.evaluate.ablation.ablate import ablate as measure
        from quad.evaluate.ablation.cross_table import cross
        from quad.evaluate.ablation.page import ablation_of, write_ablation

        request = replace(_request(model, adapters, later_files, place, names, n), device=device)
        measured = measure(request, progress)
        cross_tables = cross(request, progress)
        if speaks():
            write_ablation(request, measured, cross_tables)
    result(ablation_of(request, measured, cross_tables), as_json, [*(_line(row) for row in measured), str(output / "report.html")])


@contextmanager
def _own_place(output: Path) -> Iterator[Path]:
    """The directory to write to: of several processes the main one's is what was asked for, any other's is gone afterwards."""
    if speaks():
        yield output
        return
    from quad.core.storage.files import scratch_directory

    with scratch_directory() as scratch:
        yield scratch


def _request(model: str, adapters: dict[str, Path], later: dict[str, Path], output: Path, names: list[str], n: int) -> AblationRequest:
    """The rows that are asked for; a model directory brings its own adapters where none is named."""
    from quad.evaluate.ablation.plan import plan
    from quad.evaluate.ablation.request import AblationRequest
    from quad.evaluate.figures.quality import find_adapters
    from quad.zoo.reference import later_adapters, reference_dir

    directory = model_directory(model)
    adapters = local_adapters(adapters) or find_adapters(directory)
    later = local_adapters(later) or (later_adapters() if directory == reference_dir() else {})
    return AblationRequest(model=directory, adapters=adapters, out=output, rows=plan(names), n=n, later=later)


def _line(row: AblationResult) -> str:
    gain = "" if row.effect_gain is None else f", effect gain {row.effect_gain:.3f}"
    return f"{row.name:<24} {row.psnr:5.2f} dB, SSIM {row.ssim:.4f}{gain}, U-Net {row.unet_ms:.1f} ms"
