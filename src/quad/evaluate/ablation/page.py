"""The page of `quad ablate`: plots, one table with every row, and pictures side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from quad.core.storage.files import write_bytes
from quad.evaluate.ablation.ablate import Study
from quad.evaluate.ablation.cross_table import CrossTables
from quad.evaluate.ablation.pictures import KEPT_PICTURES, picture_file
from quad.evaluate.ablation.tables import PSNR_BARS, Entry, Rows, named, paired_tables, rows_table
from quad.evaluate.figures import metrics
from quad.evaluate.figures.quality import held_out
from quad.evaluate.page.output import write_json
from quad.evaluate.page.plots import Axis, Series, bar_chart, heat_map, line_chart
from quad.evaluate.page.report import DIFFERENCE_GAIN, Chapter, Plots, Report, Strip, hole_shown, render
from quad.evaluate.page.tables import gain_chart

# Mean PSNR of the task pictures of the paper's mixed-precision table, dB by percent at 8 bits. Source: docs/method.md section 5.
PAPER = ((0.0, 32.7), (80.0, 31.4), (90.0, 28.9), (100.0, 5.4))
TINY = 1e-30


def _percent(row: Entry) -> float:
    return round(100 * float(row["a8_fraction"]), 6)


def _sweep(rows: Rows) -> list[Entry]:
    return sorted((row for row in rows if row["group"] == "precision"), key=_percent)


def precision_plots(rows: Rows) -> Plots | None:
    """Quality against the share of activation sites at 8 bits; None without two such rows."""
    sweep = _sweep(rows)
    if len(sweep) < 2:
        return None
    x = Axis("activation sites at 8 bits, %", 0.0, 100.0)
    by_task = [Series(task, [(_percent(row), row["tasks"][task]["psnr"]) for row in sweep]) for task in sweep[0]["tasks"]]
    both = [Series("mean of tasks", [(_percent(row), row["psnr"]) for row in sweep]), Series("the paper", PAPER)]
    svgs = [
        line_chart("PSNR against FP32", x, Axis("PSNR, dB"), both),
        line_chart("PSNR against FP32, task by task", x, Axis("PSNR, dB"), by_task),
        line_chart("SSIM against FP32", x, Axis("SSIM"), [Series("SSIM", [(_percent(row), row["ssim"]) for row in sweep])]),
    ]
    gains = [(_percent(row), row["effect_gain"]) for row in sweep if row["effect_gain"] is not None]
    if gains:
        svgs.append(line_chart("Adapter effect gain, 1 is right", x, Axis("gain"), [Series("gain", gains)]))
    lead = "The sites of least isolated damage go to 8 bits first. The paper's figures are of its own model and tasks: compare the shape."
    return Plots("Quality against the share at 8 bits", lead, svgs)


def effect_plots(row: Entry) -> Plots | None:
    """The adapters' gain and SQNR, task by task, in one row; None without adapters."""
    tasks = {task: entry for task, entry in row["tasks"].items() if entry["effect_gain"] is not None}
    if not tasks:
        return None
    sqnr = [(task, entry["effect_sqnr_db"]) for task, entry in tasks.items()]
    svgs = [gain_chart(tasks), bar_chart("SQNR of the effect", Axis("SQNR, dB"), sqnr)]
    lead = "Effect = U-Net output with the adapter minus output with the zero adapter, same inputs."
    return Plots(f"Is the adapter as strong? Row {row['name']}", lead, svgs)


def cross_plots(tables: CrossTables) -> list[Plots]:
    """The N x N tables as heat maps, each row over its own encodings' damage."""
    found = []
    for table, title in ((tables.plain, "Does one profile serve all?"), (tables.hard, "And with an adapter made to disagree?")):
        if table is None:
            continue
        names, scores = table["names"], table["scores"]
        values = [[score / max(row[i], TINY) for score in row] for i, row in enumerate(scores)]
        map_title = "Damage of adapter i under the encodings of j, over its damage under its own"
        svg = heat_map(map_title, names, names, values, ("adapter i", "of j"))
        serves = "One profile serves all" if table["one_serves_all"] else "No single adapter's profile serves all"
        lead = f"1 is no worse than a profile of its own. {serves}; {table['best']}'s encodings leave the worst-served adapter best off."
        found.append(Plots(title, lead, (svg,)))
    return found


def _read(file: Path) -> NDArray[np.uint8] | None:
    if not file.is_file():
        return None
    with Image.open(file) as picture:
        return np.asarray(picture.convert("RGB"))


def chapter(out: Path, row: Entry) -> Chapter:
    """One row's pictures, all tasks, beside FP32."""
    strips = []
    for index in range(KEPT_PICTURES):
        for task in row["tasks"]:
            fp, quantized = (_read(picture_file(out, name, task, index)) for name in ("fp32", row["name"]))
            if fp is None or quantized is None:
                continue
            sample = held_out(task, index + 1)[index]
            image = sample.image
            if image is not None and sample.mask is not None:
                image = hole_shown(image, sample.mask)
            facts = f"{task}, {metrics.psnr(fp, quantized):.1f} dB to FP32"
            strips.append(Strip(sample.prompt, fp, quantized, facts, image))
    return Chapter(
        row["name"], f"{row['psnr']:.1f} dB and SSIM {row['ssim']:.3f} in the mean, worst task {row['psnr_min']:.1f} dB.", strips
    )


def make_page(study: Study, rows: Rows, crossed: CrossTables) -> Report:
    """The page's content.

    Args:
        rows: of `ablate`; the first is the one that the others vary.
        crossed: of `cross`.
    """
    by_name = named(rows)
    plots = [found for found in (precision_plots(rows), effect_plots(rows[0])) if found is not None] + cross_plots(crossed)
    facts = [(f"{name}, mean of tasks", f"{by_name[name]['psnr']:.1f} dB") for name in PSNR_BARS if name in by_name]
    facts += [("rows", str(len(rows))), ("samples a task", str(study.n))]
    lead = "What each choice costs: precision of activations, bits of LoRA weights, one profile or many, and each quality step left out."
    footer = (f"Differences are absolute and {DIFFERENCE_GAIN} times amplified. Pictures are 64x64 pixels, three times enlarged.",)
    chapters = [chapter(study.out, row) for row in rows]
    tables = (rows_table(rows, {row.name: row.beside for row in study.rows}), *paired_tables(rows))
    return Report("quad ablate", lead, facts, tables, chapters, (), footer, plots)


def study_json(study: Study, rows: Rows, crossed: CrossTables) -> dict[str, Any]:
    """The object of `quad ablate --json`."""
    return {"n": study.n, "rows": list(rows), "cross_table": crossed.plain, "cross_table_hard": crossed.hard}


def write_study(study: Study, rows: Rows, crossed: CrossTables) -> None:
    """`ablate.json` and `report.html` in the study's directory."""
    write_json(study.out / "ablate.json", study_json(study, rows, crossed))
    write_bytes(study.out / "report.html", render(make_page(study, rows, crossed)).encode())
