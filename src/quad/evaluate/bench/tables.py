"""What a bench found, in the layout of the paper's tables 2 and 3: one column a task, one row a figure. Pure functions of `bench.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quad.runtime.engines.graph import LEAN

SWITCH_MS, FLAT, SPARED = 2.0, 1.3, 0.3
NOT_APPLICABLE = "NA"
_PARTS = (
    ("Text encoder (ms)", "text_encoder_ms"),
    ("VAE encoder (ms)", "vae_encoder_ms"),
    ("U-Net, one step (ms)", "unet_step_ms"),
    ("VAE decoder (ms)", "vae_decoder_ms"),
    ("End to end (ms)", "end_to_end_ms"),
)


@dataclass(frozen=True)
class Row:
    """One figure: its bar as text (empty: none), whether each cell reached it (None: no bar), and what belongs beside it."""

    name: str
    cells: tuple[str, ...]
    bar: str = ""
    passed: tuple[bool | None, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Grid:
    """A titled table."""

    title: str
    lead: str
    columns: tuple[str, ...]
    rows: Sequence[Row]


def megabytes(n_bytes: float) -> str:
    return f"{n_bytes / 1e6:.1f}"


def milliseconds_shown(value: float | None) -> str:
    """Three figures that mean something; `NA` where a task does not use the part."""
    return NOT_APPLICABLE if value is None else f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def task_grid(found: Mapping[str, Any]) -> Grid:
    """The paper's tables 2 and 3."""
    tasks, rom = found["tasks"], found["rom_bytes"]
    entries = list(tasks.values())
    loras = [megabytes(rom["adapters"][entry["adapter"]]) if entry["adapter"] in rom["adapters"] else NOT_APPLICABLE for entry in entries]
    rows = [
        Row("Sampler", tuple(entry["sampler"].upper() for entry in entries)),
        Row("Steps", tuple(str(entry["steps"]) for entry in entries)),
        Row("Guidance", tuple(f"{entry['guidance']:g}" for entry in entries), note="other than 1: two U-Net calls a step"),
        *(Row(name, tuple(milliseconds_shown(entry[key]) for entry in entries)) for name, key in _PARTS),
        Row("Shared FM ROM (MB)", (megabytes(rom["shared"]), *[""] * (len(entries) - 1)), note="once for all tasks"),
        Row("LoRA ROM (MB)", tuple(loras)),
        Row("Peak RAM (MB)", tuple(megabytes(entry["peak_ram_bytes"]) for entry in entries), note="every adapter in memory"),
    ]
    lead = "Medians of whole pictures, the task's adapter already bound. NA: the task does not use it."
    return Grid("Tasks (the paper's tables 2 and 3)", lead, tuple(tasks), rows)


def component_grid(found: Mapping[str, Any]) -> Grid:
    """Single calls of each graph."""
    rom = found["rom_bytes"]["components"]
    rows = [
        Row(name, (milliseconds_shown(times["median_ms"]), milliseconds_shown(times["p95_ms"]), megabytes(rom[name])))
        for name, times in found["components"].items()
    ]
    rows.append(Row("open the bundle", (milliseconds_shown(found["load_ms"]), "", ""), note="digests compared, all graphs loaded"))
    return Grid("Graphs", "Single calls, the U-Net's without guidance.", ("median ms", "p95 ms", "MB"), rows)


def memory_grid(found: Mapping[str, Any]) -> Grid:
    """What each memory plan takes, against keeping all graphs."""
    rows, plans = [], found.get("memory", {})
    for plan, entry in plans.items():
        less = 1 - entry["peak_ram_bytes"] / plans["keep-all"]["peak_ram_bytes"]
        shown = (megabytes(entry["peak_ram_bytes"]), f"{100 * less:.0f} %")
        cells = (*shown, *(milliseconds_shown(entry[key]) for key in ("open_ms", "first_ms", "next_ms")))
        lean = plan == LEAN
        rows.append(Row(plan, cells, f"≥ {100 * SPARED:.0f} %" if lean else "", (None, less >= SPARED) if lean else ()))
    lead = "One picture in a few steps that uses every graph, then another; each plan in a process of its own."
    return Grid("Memory plans", lead, ("peak MB", "less", "open ms", "first ms", "next ms"), rows)


def switch_grid(found: Mapping[str, Any]) -> Grid:
    """Another adapter instead of the one bound."""
    switch, bar = found["switch"], f"≤ {SWITCH_MS:g} ms"
    rows = [
        Row("cold", (milliseconds_shown(switch["cold_ms"]), "", ""), note="its file read and its digest compared; page cache warm"),
        Row("warm", (milliseconds_shown(switch["warm_ms"]), milliseconds_shown(switch["warm_p95_ms"]), ""), bar,
            (switch["warm_ms"] <= SWITCH_MS,), "among the bundle's own"),
    ]  # fmt: skip
    for count, times in switch["resident"].items():
        cells = tuple(milliseconds_shown(times[key]) for key in ("median_ms", "p95_ms", "in_turn_ms"))
        rows.append(Row(f"warm, {count} in memory", cells, bar, (times["median_ms"] <= SWITCH_MS,), "between the first and the last"))
    if switch["flatness"] is not None:
        flat = switch["flatness"]
        rows.append(Row("dearest over cheapest", (f"{flat:.2f}x", "", ""), f"≤ {FLAT:g}x", (flat <= FLAT,)))
    columns = ("median ms", "p95 ms", "each in turn")
    return Grid("Switching the adapter", "No graph is compiled or loaded: buffers change places.", columns, rows)


def rom_grid(found: Mapping[str, Any]) -> Grid:
    """One graph for all against one binary per adapter."""
    rows = []
    for entry in found["rom_bytes"]["separate"]:
        cells = tuple(megabytes(entry[key]) for key in ("one_for_all", "separate", "separate_unet"))
        name = "1 adapter" if entry["adapters"] == 1 else f"{entry['adapters']} adapters"
        rows.append(Row(name, (*cells, f"{entry['ratio']:.2f}x", f"{entry['ratio_unet']:.2f}x")))
    lead = (
        "A separate binary is this bundle's graph with one LoRA merged in, at the same precision: as large as the graph alone. Either each "
        "brings a whole pipeline, as the paper counts, or they share all but the U-Net. Adapters are of this bundle's mean size."
    )
    return Grid(
        "ROM: one for all against one per adapter (MB)", lead, ("one for all", "separate", "only U-Net", "saved", "saved, U-Net"), rows
    )


def grids(found: Mapping[str, Any]) -> list[Grid]:
    """All tables of a bench; those without a row are left out."""
    some = [task_grid(found), component_grid(found), memory_grid(found), switch_grid(found), rom_grid(found)]
    return [grid for grid in some if grid.rows]


def text_lines(grid: Grid) -> list[str]:
    """A table for a terminal: columns lined up, numbers to the right, bars as words."""
    cells = [["", *grid.columns], *([row.name, *(_marked(row, place) for place in range(len(row.cells)))] for row in grid.rows)]
    widths = [max(len(line[place]) for line in cells if place < len(line)) for place in range(len(cells[0]))]
    lines = []
    for line in cells:
        shown = [line[0].ljust(widths[0]), *(text.rjust(width) for text, width in zip(line[1:], widths[1:], strict=False))]
        lines.append("  ".join(shown).rstrip())
    return [grid.title, *lines, ""]


def _marked(row: Row, place: int) -> str:
    passed = row.passed[place] if place < len(row.passed) else None
    return row.cells[place] if passed is not False else f"{row.cells[place]} (bar {row.bar})"
