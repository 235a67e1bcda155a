"""The tables of `quad ablate`: every row, and the paired comparisons that its bars are for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from quad.evaluate.ablation.results import AblationResult, LaterFigures
from quad.evaluate.page.table import Cell, Row, Table, plain

PSNR_BARS = {"w8a16": 38.0, "mixed-80": 33.0, "w8a8": 25.0}
LORA_LOSS_DB = 0.5
RESAMPLES = 2000
LATER_GAIN = (0.98, 1.02)
SEEN_LOSS = 1e-3
Rows = Sequence[AblationResult]


def by_name(rows: Rows) -> dict[str, AblationResult]:
    """Rows by their names."""
    return {row.name: row for row in rows}


def _shown(value: float | None, text: str) -> str:
    return "" if value is None else text.format(value)


def _loss(row: AblationResult, baseline: AblationResult) -> float:
    """dB below another row, over the tasks that both have."""
    both = [task for task in row.tasks if task in baseline.tasks]
    return float(np.mean([baseline.tasks[task].psnr - row.tasks[task].psnr for task in both]))


def _note(row: AblationResult, baseline: AblationResult | None) -> str:
    parts = [f"worst task {row.psnr_min:.1f} dB", f"profile {row.profile.get('mode', '')}"]
    if baseline is not None and baseline is not row:
        parts.insert(0, f"{-_loss(row, baseline):+.2f} dB to {baseline.name}")
        if missing := [task for task in baseline.tasks if task not in row.tasks]:
            parts.append(f"without {', '.join(missing)}")
    return "; ".join(parts)


def rows_table(rows: Rows, baselines: Mapping[str, str]) -> Table:
    """Every row.

    Args:
        baselines: row -> the row it is compared with.
    """
    measured, lines = by_name(rows), []
    for row in rows:
        baseline = measured.get(baselines.get(row.name, ""))
        bar = PSNR_BARS.get(row.name)
        passed = None if bar is None else row.psnr_min >= bar
        if row.name == "lora-8" and baseline is not None:
            passed = _loss(row, baseline) <= LORA_LOSS_DB
        figures = plain(
            f"{row.ssim:.4f}",
            f"{row.lpips_toy:.4f}",
            f"{row.fd_toy:.2f}",
            _shown(row.effect_gain, "{:.3f}"),
            _shown(row.effect_sqnr_db, "{:.1f} dB"),
            f"{row.lora_rom_bytes / 1e6:.2f} MB",
            f"{row.unet_ms:.1f} ms",
        )
        cells = (Cell(f"{row.psnr:.2f} dB", passed), *figures)
        bar_text = "" if bar is None else f"≥ {bar:g} dB, every task"
        lines.append(Row(name=row.name, cells=cells, bar=bar_text, note=_note(row, baseline)))
    lead = (
        "Every row is a bundle of its own, run by its engine, against FP32 pictures from the same noise; figures are means over tasks. "
        "LPIPS-toy and FD-toy are the formulas of LPIPS and FID on our own small classifier, not those metrics."
    )
    columns = ("PSNR", "SSIM", "LPIPS-toy", "FD-toy", "gain", "effect SQNR", "LoRA ROM", "U-Net")
    return Table(title="Every row", lead=lead, columns=columns, rows=lines)


def later_table(rows: Rows) -> Table | None:
    """Later adapters at each strength, row by row; None where no row admits any."""
    admitting = [row for row in rows if row.later]
    if not admitting:
        return None
    keys = [(name, strength) for name, strengths in admitting[0].later.items() for strength in strengths]
    lines = [
        Row(
            name=f"{name} at {strength}",
            cells=tuple(later_cell(row.later.get(name, {}).get(strength)) for row in admitting),
            note="; ".join(
                f"{row.name}: {figures.reason}"
                for row in admitting
                if (figures := row.later.get(name, {}).get(strength)) and figures.reason
            ),
        )
        for name, strength in keys
    ]
    lead = (
        "Admitted at that strength, with the model at hand where it is a DoRA: gain of its effect (1 is right), SQNR of the effect "
        "and of the output, on single U-Net calls; how much of an activation is cut off, and the largest weight granted if under 1. "
        f"Bar: admitted, gain within {LATER_GAIN[0]} and {LATER_GAIN[1]}."
    )
    return Table(title="Later adapters", lead=lead, columns=tuple(row.name for row in admitting), rows=lines)


def later_cell(figures: LaterFigures | None) -> Cell:
    """One adapter at one strength; refused, or of another strength than it should have, it missed its bar."""
    if figures is None:
        return Cell("")
    if not figures.admitted or figures.effect_gain is None:
        return Cell("refused", passed=False)
    low, high = LATER_GAIN
    text = f"{figures.effect_gain:.3f}, {figures.effect_sqnr_db:.1f} / {figures.output_db:.1f} dB"
    text += "" if (figures.lost or 0.0) < SEEN_LOSS else f", {figures.lost:.1%} cut off"
    text += "" if (figures.headroom or 1.0) >= 1.0 else f", to {figures.headroom:g}"
    return Cell(text, low <= figures.effect_gain <= high)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two rows that differ in one choice.

    Args:
        column: its heading.
        better, worse: names of rows; the figure is the first's PSNR minus the second's.
        most: bar in dB on the loss of the second; None for none.
    """

    column: str
    better: str
    worse: str
    most: float | None = None


@dataclass(frozen=True)
class Section:
    """One table of comparisons."""

    title: str
    lead: str
    comparisons: tuple[Comparison, ...]


OWN_LEAD = (
    "PSNR with a profile made for the adapter alone, minus PSNR under the shared one. Hard: beside an adapter made 4 times too strong."
)

SECTIONS = (
    Section(
        "One profile for all, or one each? 16-bit activations",
        OWN_LEAD,
        (
            Comparison(column="w8a16, auto", better="profile-own", worse="w8a16", most=LORA_LOSS_DB),
            Comparison(column="w8a16, unified", better="profile-own", worse="profile-unified", most=LORA_LOSS_DB),
            Comparison(column="w8a16, hard", better="profile-own", worse="hard-w8a16"),
        ),
    ),
    Section(
        "One profile for all, or one each? 80 % at 8 bits",
        OWN_LEAD,
        (
            Comparison(column="mixed:80, auto", better="profile-own-mixed-80", worse="mixed-80"),
            Comparison(column="mixed:80, unified", better="profile-own-mixed-80", worse="profile-unified-mixed-80"),
            Comparison(column="mixed:80, hard", better="profile-own-mixed-80", worse="hard-mixed-80"),
            Comparison(column="mixed:80, hard, unified", better="profile-own-mixed-80", worse="hard-unified-mixed-80"),
        ),
    ),
    Section(
        "LoRA weights at 8 bits",
        "PSNR with 16-bit LoRA weights minus PSNR with 8-bit ones.",
        (
            Comparison(column="w8a16", better="w8a16", worse="lora-8", most=LORA_LOSS_DB),
            Comparison(column="mixed:80", better="mixed-80", worse="lora-8-mixed-80", most=LORA_LOSS_DB),
        ),
    ),
    Section(
        "What distillation brings",
        "PSNR with distilled adapters minus PSNR with adapters as they came.",
        (
            Comparison(column="w8a16", better="distillation", worse="w8a16"),
            Comparison(column="mixed:80", better="distillation-mixed-80", worse="mixed-80"),
        ),
    ),
)


def gained(better: Sequence[float], worse: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """Mean difference of paired figures, and its 95 % interval by bootstrap over pairs."""
    difference = np.asarray(better, np.float64) - np.asarray(worse, np.float64)
    picks = np.random.default_rng(seed).integers(len(difference), size=(RESAMPLES, len(difference)))
    low, high = np.quantile(difference[picks].mean(axis=1), [0.025, 0.975])
    return float(difference.mean()), float(low), float(high)


def paired_tables(rows: Rows) -> tuple[Table, ...]:
    """A table for every section of which some rows were measured."""
    tables = (paired_table(section, rows) for section in SECTIONS)
    return tuple(table for table in tables if table is not None)


def paired_table(section: Section, rows: Rows) -> Table | None:
    """Task by task, the gain of one choice over another; None where no pair of rows was measured."""
    measured = by_name(rows)
    comparisons = [pair for pair in section.comparisons if pair.better in measured and pair.worse in measured]
    if not comparisons:
        return None
    tasks = [task for task in measured[comparisons[0].worse].tasks if any(task in measured[pair.better].tasks for pair in comparisons)]
    lines = [Row(name=task, cells=tuple(_difference(pair, measured, task) for pair in comparisons)) for task in tasks]
    bars = [f"{pair.column} ≤ {pair.most:g} dB" for pair in comparisons if pair.most is not None]
    lead = f"{section.lead} Mean over samples, 95 % interval by paired bootstrap." + (f" Bars: {', '.join(bars)}." if bars else "")
    return Table(title=section.title, lead=lead, columns=tuple(pair.column for pair in comparisons), rows=lines)


def _difference(pair: Comparison, measured: Mapping[str, AblationResult], task: str) -> Cell:
    better, worse = (measured[name].tasks.get(task) for name in (pair.better, pair.worse))
    if better is None or worse is None:
        return Cell("")
    mean, low, high = gained(better.psnr_each, worse.psnr_each)
    if better.effect_gain is None:  # no adapter, nothing to judge
        return Cell(f"{mean:+.2f} dB")
    passed = None if pair.most is None else mean <= pair.most
    return Cell(f"{mean:+.2f} dB ({low:+.2f} to {high:+.2f})", passed)
