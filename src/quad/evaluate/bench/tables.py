"""The tables of a bench, the first in the layout of the paper's tables 2 and 3: one column a task, one row a figure."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from quad.evaluate.bench.results import BenchResult, MemoryPlanCosts
from quad.evaluate.page.table import Cell, Row, Table, plain
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


def megabytes(n_bytes: float) -> str:
    """Bytes in MB, as text."""
    return f"{n_bytes / 1e6:.1f}"


def shown_ms(value: float | None) -> str:
    """Three figures that mean something; `NA` where a task does not use the part."""
    return NOT_APPLICABLE if value is None else f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def task_table(measured: BenchResult) -> Table:
    """The paper's tables 2 and 3."""
    rom, entries = measured.rom_bytes, list(measured.tasks.values())
    loras = [megabytes(rom.adapters[entry.adapter]) if entry.adapter in rom.adapters else NOT_APPLICABLE for entry in entries]
    rows = [
        Row(name="Sampler", cells=plain(*(entry.sampler.upper() for entry in entries))),
        Row(name="Steps", cells=plain(*(str(entry.steps) for entry in entries))),
        Row(name="Guidance", cells=plain(*(f"{entry.guidance:g}" for entry in entries)), note="above 1: two U-Net calls a step"),
        *(Row(name=name, cells=plain(*(shown_ms(getattr(entry, field)) for entry in entries))) for name, field in _PARTS),
        Row(name="Shared FM ROM (MB)", cells=plain(megabytes(rom.shared), *[""] * (len(entries) - 1)), note="once for all tasks"),
        Row(name="LoRA ROM (MB)", cells=plain(*loras)),
        Row(name="Peak RAM (MB)", cells=plain(*(megabytes(entry.peak_ram_bytes) for entry in entries)), note="every adapter in memory"),
    ]
    lead = "Medians of whole pictures, the task's adapter already bound. NA: the task does not use it."
    return Table(title="Tasks (the paper's tables 2 and 3)", lead=lead, columns=tuple(measured.tasks), rows=rows)


def component_table(measured: BenchResult) -> Table:
    """Single calls of each graph."""
    rom = measured.rom_bytes.components
    rows = [
        Row(name=name, cells=plain(shown_ms(times.median_ms), shown_ms(times.p95_ms), megabytes(rom[name])))
        for name, times in measured.components.items()
    ]
    opening = plain(shown_ms(measured.load_ms), "", "")
    rows.append(Row(name="open the bundle", cells=opening, note="digests compared, all graphs loaded"))
    return Table(title="Graphs", lead="Single calls, the U-Net's without guidance.", columns=("median ms", "p95 ms", "MB"), rows=rows)


def memory_table(plans: Mapping[str, MemoryPlanCosts]) -> Table:
    """The cost of each memory plan, against keeping all graphs."""
    rows = []
    for plan, costs in plans.items():
        spared = 1 - costs.peak_ram_bytes / plans["keep-all"].peak_ram_bytes
        lean = plan == LEAN
        cells = (
            Cell(megabytes(costs.peak_ram_bytes)),
            Cell(f"{100 * spared:.0f} %", spared >= SPARED if lean else None),
            *plain(*(shown_ms(ms) for ms in (costs.open_ms, costs.first_ms, costs.next_ms))),
        )
        rows.append(Row(name=plan, cells=cells, bar=f"≥ {100 * SPARED:.0f} %" if lean else ""))
    lead = "One picture in a few steps that uses every graph, then another; each plan in a process of its own."
    return Table(title="Memory plans", lead=lead, columns=("peak MB", "less", "open ms", "first ms", "next ms"), rows=rows)


def switch_table(measured: BenchResult) -> Table:
    """Another adapter instead of the one bound."""
    switch, bar = measured.switch, f"≤ {SWITCH_MS:g} ms"
    cold = plain(shown_ms(switch.cold_ms), "", "")
    warm = (Cell(shown_ms(switch.warm_ms), switch.warm_ms <= SWITCH_MS), *plain(shown_ms(switch.warm_p95_ms), ""))
    rows = [
        Row(name="cold", cells=cold, note="its file read and its digest compared; page cache warm"),
        Row(name="warm", cells=warm, bar=bar, note="among the bundle's own"),
    ]
    if switch.graph_ms is not msgspec.UNSET:
        note = "when a picture first needs it, under keep-all"
        rows.append(Row(name="the U-Net of another profile", cells=plain(shown_ms(switch.graph_ms), "", ""), note=note))
    for count, times in switch.resident.items():
        median = Cell(shown_ms(times.median_ms), times.median_ms <= SWITCH_MS)
        cells = (median, *plain(shown_ms(times.p95_ms), shown_ms(times.in_turn_ms)))
        rows.append(Row(name=f"warm, {count} in memory", cells=cells, bar=bar, note="between the first and the last"))
    if switch.flatness is not None:
        flatness = Cell(f"{switch.flatness:.2f}x", switch.flatness <= FLAT)
        rows.append(Row(name="dearest over cheapest", cells=(flatness, *plain("", "")), bar=f"≤ {FLAT:g}x"))
    lead = "No graph is compiled or loaded: buffers change places."
    return Table(title="Switching the adapter", lead=lead, columns=("median ms", "p95 ms", "each in turn"), rows=rows)


def rom_table(measured: BenchResult) -> Table:
    """One graph for all against one binary per adapter."""
    rows = []
    for entry in measured.rom_bytes.separate:
        sizes = (megabytes(n_bytes) for n_bytes in (entry.one_for_all, entry.separate, entry.separate_unet))
        name = "1 adapter" if entry.adapters == 1 else f"{entry.adapters} adapters"
        rows.append(Row(name=name, cells=plain(*sizes, f"{entry.ratio:.2f}x", f"{entry.ratio_unet:.2f}x")))
    lead = (
        "A separate binary is this bundle's graph with one LoRA merged in, at the same precision: as large as the graph alone. Either each "
        "brings a whole pipeline, as the paper counts, or they share all but the U-Net. Adapters are of this bundle's mean size."
    )
    columns = ("one for all", "separate", "only U-Net", "saved", "saved, U-Net")
    return Table(title="ROM: one for all against one per adapter (MB)", lead=lead, columns=columns, rows=rows)


def tables(measured: BenchResult) -> list[Table]:
    """All tables of a bench; those without a row are left out."""
    memory = {} if measured.memory is msgspec.UNSET else measured.memory
    parts = (task_table(measured), component_table(measured), memory_table(memory), switch_table(measured), rom_table(measured))
    return [table for table in parts if table.rows]
