"""`quad ablate`: what each choice of a build costs, one bundle a row."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quad.cli.extras import check_build
from quad.cli.options import named_paths
from quad.cli.shared_options import Adapters, Model, Samples, check_report_dir, model_directory
from quad.cli.show import Json, result, stage_bar

if TYPE_CHECKING:
    from quad.evaluate.ablation.ablate import Study

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


def ablate(model: Model, output: Output, adapter: Adapters = None, rows: Rows = None, n: Samples = 16, as_json: Json = False) -> None:
    """Build and measure one bundle for each choice."""
    adapters = named_paths("--adapter", adapter or [])
    check_report_dir(output)
    names = [name.strip() for value in rows or [] for name in value.split(",") if name.strip()]
    with stage_bar() as progress, redirect_stdout(sys.stderr):
        check_build("quad ablate")
        from quad.evaluate.ablation.ablate import ablate as measure
        from quad.evaluate.ablation.cross_table import cross
        from quad.evaluate.ablation.page import study_json, write_study

        study = _study(model, adapters, output, names, n)
        measured = measure(study, progress)
        cross_tables = cross(study, progress)
        write_study(study, measured, cross_tables)
    result(study_json(study, measured, cross_tables), as_json, [*(_line(row) for row in measured), str(output / "report.html")])


def _study(model: str, adapters: dict[str, Path], output: Path, names: list[str], n: int) -> Study:
    """The rows that are asked for; a model directory brings its own adapters where none is named."""
    from quad.evaluate.ablation.ablate import Study
    from quad.evaluate.ablation.plan import plan
    from quad.evaluate.figures.quality import find_adapters

    directory = model_directory(model)
    return Study(directory, adapters or find_adapters(directory), output, plan(names), n)


def _line(row: dict[str, Any]) -> str:
    gain = "" if row["effect_gain"] is None else f", effect gain {row['effect_gain']:.3f}"
    return f"{row['name']:<24} {row['psnr']:5.2f} dB, SSIM {row['ssim']:.4f}{gain}, U-Net {row['unet_ms']:.1f} ms"
