"""The page of `quad ablate`: plots, one table with every row, and pictures side by side."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from quad.core.storage.files import write_bytes
from quad.evaluate.ablation.cross_table import CrossTables
from quad.evaluate.ablation.later import STRENGTHS
from quad.evaluate.ablation.pictures import KEPT_PICTURES, picture_file
from quad.evaluate.ablation.request import AblationRequest
from quad.evaluate.ablation.results import Ablation, AblationResult
from quad.evaluate.ablation.tables import PSNR_BARS, Rows, by_name, later_table, paired_tables, rows_table
from quad.evaluate.figures import metrics
from quad.evaluate.figures.quality import held_out
from quad.evaluate.page.output import write_json
from quad.evaluate.page.plots import Axis, Series, bar_chart, heat_map, line_chart
from quad.evaluate.page.report import DIFFERENCE_GAIN, Chapter, Plots, Report, Strip, hole_shown, render
from quad.evaluate.page.tables import gain_chart

# Mean PSNR of the task pictures of the paper's mixed-precision table, dB by percent at 8 bits. Source: docs/method.md section 5.
PAPER = ((0.0, 32.7), (80.0, 31.4), (90.0, 28.9), (100.0, 5.4))
TINY = 1e-30


def _percent(row: AblationResult) -> float:
    return round(100 * float(row.a8_fraction), 6)


def _sweep(rows: Rows) -> list[AblationResult]:
    return sorted((row for row in rows if row.group == "precision"), key=_percent)


def precision_plots(rows: Rows) -> Plots | None:
    """Quality against the share of activation sites at 8 bits; None without two such rows."""
    sweep = _sweep(rows)
    if len(sweep) < 2:
        return None
    x = Axis("activation sites at 8 bits, %", 0.0, 100.0)
    by_task = [Series(task, [(_percent(row), row.tasks[task].psnr) for row in sweep]) for task in sweep[0].tasks]
    both = [Series("mean of tasks", [(_percent(row), row.psnr) for row in sweep]), Series("the paper", PAPER)]
    svgs = [
        line_chart("PSNR against FP32", x, Axis("PSNR, dB"), both),
        line_chart("PSNR against FP32, task by task", x, Axis("PSNR, dB"), by_task),
        line_chart("SSIM against FP32", x, Axis("SSIM"), [Series("SSIM", [(_percent(row), row.ssim) for row in sweep])]),
    ]
    gains = [(_percent(row), row.effect_gain) for row in sweep if row.effect_gain is not None]
    if gains:
        svgs.append(line_chart("Adapter effect gain, 1 is right", x, Axis("gain"), [Series("gain", gains)]))
    lead = "The sites of least isolated damage go to 8 bits first. The paper's figures are of its own model and tasks: compare the shape."
    return Plots("Quality against the share at 8 bits", lead, svgs)


def effect_plots(row: AblationResult) -> Plots | None:
    """The adapters' gain and SQNR, task by task, in one row; None without adapters."""
    gains = {task: entry.effect_gain for task, entry in row.tasks.items() if entry.effect_gain is not None}
    if not gains:
        return None
    sqnr = [(task, entry.effect_sqnr_db) for task, entry in row.tasks.items() if entry.effect_sqnr_db is not None]
    svgs = [gain_chart(gains), bar_chart("SQNR of the effect", Axis("SQNR, dB"), sqnr)]
    lead = "Effect = U-Net output with the adapter minus output with the zero adapter, same inputs."
    return Plots(f"Is the adapter as strong? Row {row.name}", lead, svgs)


def cross_plots(tables: CrossTables) -> list[Plots]:
    """The N x N tables as heat maps, each row over its own encodings' damage."""
    plots = []
    for table, title in ((tables.plain, "Does one profile serve all?"), (tables.hard, "And with an adapter made to disagree?")):
        if table is None:
            continue
        names, scores = table.names, table.scores
        values = [[score / max(row[i], TINY) for score in row] for i, row in enumerate(scores)]
        map_title = "Damage of adapter i under the encodings of j, over its damage under its own"
        svg = heat_map(map_title, names, names, values, ("adapter i", "of j"))
        serves = "One profile serves all" if table.one_serves_all else "No single adapter's profile serves all"
        lead = f"1 is no worse than a profile of its own. {serves}; {table.best}'s encodings leave the worst-served adapter best off."
        plots.append(Plots(title, lead, (svg,)))
    return plots


def later_plots(rows: Rows) -> Plots | None:
    """The effect of later adapters against their strength, a line for each row; None where no row admits any."""
    admitting = [row for row in rows if row.later]
    if not admitting:
        return None
    svgs = []
    for name in admitting[0].later:
        series = []
        for row in admitting:
            values = {float(strength): figures.effect_sqnr_db for strength, figures in row.later.get(name, {}).items()}
            series.append(Series(row.name, [(strength, value) for strength, value in values.items() if value is not None]))
        x = Axis("strength", 0.0, max(STRENGTHS))
        svgs.append(line_chart(f"SQNR of the effect of {name}", x, Axis("SQNR, dB"), [line for line in series if line.points]))
    lead = "Adapters that no profile was made for, admitted by the bundle alone. A line that ends early was refused beyond."
    return Plots("Later adapters, at several strengths", lead, svgs)


def _read(file: Path) -> NDArray[np.uint8] | None:
    if not file.is_file():
        return None
    with Image.open(file) as picture:
        return np.asarray(picture.convert("RGB"))


def chapter(out: Path, row: AblationResult) -> Chapter:
    """One row's pictures, all tasks, beside FP32."""
    strips = []
    for index in range(KEPT_PICTURES):
        for task in row.tasks:
            fp, quantized = (_read(picture_file(out, name, task, index)) for name in ("fp32", row.name))
            if fp is None or quantized is None:
                continue
            sample = held_out(task, index + 1)[index]
            image = sample.image
            if image is not None and sample.mask is not None:
                image = hole_shown(image, sample.mask)
            facts = f"{task}, {metrics.psnr(fp, quantized):.1f} dB to FP32"
            strips.append(Strip(prompt=sample.prompt, fp=fp, quantized=quantized, facts=facts, image=image))
    lead = f"{row.psnr:.1f} dB and SSIM {row.ssim:.3f} in the mean, worst task {row.psnr_min:.1f} dB."
    return Chapter(row.name, lead, strips)


def make_page(request: AblationRequest, rows: Rows, cross_tables: CrossTables) -> Report:
    """The page's content.

    Args:
        rows: of `ablate`; the first is the one that the others vary.
        cross_tables: of `cross`.
    """
    measured = by_name(rows)
    plots = [group for group in (precision_plots(rows), effect_plots(rows[0])) if group is not None] + cross_plots(cross_tables)
    plots += [later] if (later := later_plots(rows)) is not None else []
    facts = [(f"{name}, mean of tasks", f"{measured[name].psnr:.1f} dB") for name in PSNR_BARS if name in measured]
    facts += [("rows", str(len(rows))), ("samples a task", str(request.n))]
    lead = "What each choice costs: precision of activations, bits of LoRA weights, one profile or many, and each quality step left out."
    footer = (f"Differences are absolute and {DIFFERENCE_GAIN} times amplified. Pictures are 64x64 pixels, three times enlarged.",)
    chapters = [chapter(request.out, row) for row in rows]
    tables = (rows_table(rows, {row.name: row.baseline for row in request.rows}), *paired_tables(rows))
    tables += (table,) if (table := later_table(rows)) is not None else ()
    return Report(title="quad ablate", lead=lead, facts=facts, tables=tables, chapters=chapters, footer=footer, plots=plots)


def ablation_of(request: AblationRequest, rows: Rows, cross_tables: CrossTables) -> Ablation:
    """The object of `quad ablate --json`."""
    return Ablation(n=request.n, rows=list(rows), cross_table=cross_tables.plain, cross_table_hard=cross_tables.hard)


def write_ablation(request: AblationRequest, rows: Rows, cross_tables: CrossTables) -> None:
    """`ablate.json` and `report.html` in the directory asked for."""
    write_json(request.out / "ablate.json", msgspec.to_builtins(ablation_of(request, rows, cross_tables)))
    write_bytes(request.out / "report.html", render(make_page(request, rows, cross_tables)).encode())
