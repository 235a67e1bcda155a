"""The tables of `quad ablate`: every row, and the paired comparisons that its bars are about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from quad.evaluate.page.report import Line, Table

PSNR_BARS = {"w8a16": 38.0, "mixed-80": 33.0, "w8a8": 25.0}
LORA_LOSS_DB = 0.5
RESAMPLES = 2000
Rows = Sequence[Mapping[str, Any]]
Entry = Mapping[str, Any]


def named(rows: Rows) -> dict[str, Entry]:
    return {row["name"]: row for row in rows}


def _shown(value: float | None, text: str) -> str:
    return "" if value is None else text.format(value)


def _loss(row: Entry, beside: Entry) -> float:
    """dB below another row, over the tasks that both have."""
    both = [task for task in row["tasks"] if task in beside["tasks"]]
    return float(np.mean([beside["tasks"][task]["psnr"] - row["tasks"][task]["psnr"] for task in both]))


def _note(row: Entry, beside: Entry | None) -> str:
    parts = [f"worst task {row['psnr_min']:.1f} dB", f"profile {row['profile'].get('mode', '')}"]
    if beside is not None and beside is not row:
        parts.insert(0, f"{-_loss(row, beside):+.2f} dB to {beside['name']}")
        if missing := [task for task in beside["tasks"] if task not in row["tasks"]]:
            parts.append(f"without {', '.join(missing)}")
    return "; ".join(parts)


def rows_table(rows: Rows, beside: Mapping[str, str]) -> Table:
    """Every row.

    Args:
        beside: row -> the row it is compared with.
    """
    by_name, lines = named(rows), []
    for row in rows:
        other = by_name.get(beside.get(row["name"], ""))
        bar = PSNR_BARS.get(row["name"])
        passed = None if bar is None else row["psnr_min"] >= bar
        if row["name"] == "lora-8" and other is not None:
            passed = _loss(row, other) <= LORA_LOSS_DB
        cells = (
            (f"{row['psnr']:.2f} dB", passed),
            (f"{row['ssim']:.4f}", None),
            (f"{row['lpips_toy']:.4f}", None),
            (f"{row['fd_toy']:.2f}", None),
            (_shown(row["effect_gain"], "{:.3f}"), None),
            (_shown(row["effect_sqnr_db"], "{:.1f} dB"), None),
            (f"{row['lora_rom_bytes'] / 1e6:.2f} MB", None),
            (f"{row['unet_ms']:.1f} ms", None),
        )
        lines.append(Line(row["name"], "" if bar is None else f"≥ {bar:g} dB, every task", cells, _note(row, other)))
    lead = (
        "Every row is a bundle of its own, run by its engine, against FP32 pictures from the same noise; figures are means over tasks. "
        "LPIPS-toy and FD-toy are the formulas of LPIPS and FID on our own small classifier, not those metrics."
    )
    columns = ("PSNR", "SSIM", "LPIPS-toy", "FD-toy", "gain", "effect SQNR", "LoRA ROM", "U-Net")
    return Table("Every row", lead, columns, lines)


@dataclass(frozen=True)
class Comparison:
    """Two rows that differ in one thing.

    Args:
        column: what is said of it.
        better, worse: names of rows; the figure is the first's PSNR minus the second's.
        most: bar in dB on what the second may lose; None for none.
        positive: bar of another kind: the first must be better beyond doubt.
    """

    column: str
    better: str
    worse: str
    most: float | None = None
    positive: bool = False


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
            Comparison("w8a16, auto", "profile-own", "w8a16", LORA_LOSS_DB),
            Comparison("w8a16, unified", "profile-own", "profile-unified", LORA_LOSS_DB),
            Comparison("w8a16, hard", "profile-own", "hard-w8a16"),
        ),
    ),
    Section(
        "One profile for all, or one each? 80 % at 8 bits",
        OWN_LEAD,
        (
            Comparison("mixed:80, auto", "profile-own-mixed-80", "mixed-80"),
            Comparison("mixed:80, unified", "profile-own-mixed-80", "profile-unified-mixed-80"),
            Comparison("mixed:80, hard", "profile-own-mixed-80", "hard-mixed-80"),
            Comparison("mixed:80, hard, unified", "profile-own-mixed-80", "hard-unified-mixed-80"),
        ),
    ),
    Section(
        "LoRA weights at 8 bits",
        "PSNR with 16-bit LoRA weights minus PSNR with 8-bit ones.",
        (
            Comparison("w8a16", "w8a16", "lora-8", LORA_LOSS_DB),
            Comparison("mixed:80", "mixed-80", "lora-8-mixed-80", LORA_LOSS_DB),
        ),
    ),
    Section(
        "What distillation brings",
        "PSNR with distilled adapters minus PSNR with adapters that were rescaled alone.",
        (
            Comparison("w8a16", "w8a16", "without-distillation", positive=True),
            Comparison("mixed:80", "distillation-mixed-80", "mixed-80"),
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
    found = (paired_table(section, rows) for section in SECTIONS)
    return tuple(table for table in found if table is not None)


def paired_table(section: Section, rows: Rows) -> Table | None:
    """Task by task, what one choice gains over another; None where no pair of rows was measured."""
    by_name = named(rows)
    there = [one for one in section.comparisons if one.better in by_name and one.worse in by_name]
    if not there:
        return None
    tasks = [task for task in by_name[there[0].worse]["tasks"] if any(task in by_name[one.better]["tasks"] for one in there)]
    lines = [Line(task, "", tuple(_difference(one, by_name, task) for one in there)) for task in tasks]
    bars = [f"{one.column} ≤ {one.most:g} dB" for one in there if one.most is not None]
    lead = f"{section.lead} Mean over samples, 95 % interval by paired bootstrap." + (f" Bars: {', '.join(bars)}." if bars else "")
    return Table(section.title, lead, tuple(one.column for one in there), lines)


def _difference(one: Comparison, by_name: Mapping[str, Entry], task: str) -> tuple[str, bool | None]:
    pair = [by_name[name]["tasks"].get(task) for name in (one.better, one.worse)]
    if pair[0] is None or pair[1] is None:
        return "", None
    mean, low, high = gained(pair[0]["psnr_each"], pair[1]["psnr_each"])
    if pair[0]["effect_gain"] is None:  # no adapter, nothing to judge
        return f"{mean:+.2f} dB", None
    passed = low > 0.0 if one.positive else None if one.most is None else mean <= one.most
    return f"{mean:+.2f} dB ({low:+.2f} to {high:+.2f})", passed
