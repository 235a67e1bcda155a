"""The page and the files of `quad bench -o DIR`."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

from quad.core.storage.files import write_bytes
from quad.evaluate.bench.results import BenchResult
from quad.evaluate.bench.tables import megabytes, shown_ms, tables
from quad.evaluate.page.plots import Axis, Series, bar_chart, line_chart
from quad.evaluate.page.report import Plots, Report, render

BENCH_FILE, PAGE_FILE = "bench.json", "bench.html"
ROM_SHOWN, ROM_ADAPTERS = 20, 10


def _task_plot(measured: BenchResult) -> str:
    bars = [(task, ms / 1e3) for task, ms in measured.end_to_end_ms.items()]
    return bar_chart("One picture, end to end", Axis("seconds"), bars)


def _switch_plot(measured: BenchResult) -> str:
    points = [(float(count), times.median_ms) for count, times in measured.switch.resident.items()]
    return line_chart("Warm switch, adapters in memory", Axis("adapters", 0.0), Axis("median ms", 0.0), [Series("warm", points)])


def _rom_plot(measured: BenchResult) -> str:
    rom = measured.rom_bytes
    shared, unet = rom.shared / 1e6, rom.components["unet"] / 1e6
    mean = sum(rom.adapters.values()) / len(rom.adapters) / 1e6
    counts = range(1, ROM_SHOWN + 1)
    series = [
        Series("one for all", [(n, shared + n * mean) for n in counts]),
        Series("separate", [(n, n * shared) for n in counts]),
        Series("only U-Net", [(n, shared - unet + n * unet) for n in counts]),
    ]
    return line_chart("ROM by number of adapters", Axis("adapters", 0.0), Axis("MB", 0.0), series)


def _facts(measured: BenchResult) -> list[tuple[str, str]]:
    rom, adapters = measured.rom_bytes, list(measured.rom_bytes.adapters.values())
    facts = [
        ("one U-Net step", f"{shown_ms(measured.components['unet'].median_ms)} ms"),
        ("shared by all tasks", f"{megabytes(rom.shared)} MB"),
        ("peak memory", f"{megabytes(measured.peak_ram_bytes)} MB"),
    ]
    if adapters:
        ratio = next(entry.ratio for entry in rom.separate if entry.adapters == ROM_ADAPTERS)
        facts[1:1] = [("to switch the task, warm", f"{shown_ms(measured.switch.warm_ms)} ms")]
        facts[3:3] = [("one more task", f"{megabytes(sum(adapters) / len(adapters))} MB")]
        facts.append((f"ROM saved with {ROM_ADAPTERS} adapters", f"{ratio:.1f}x"))
    return facts


def machine_line(measured: BenchResult) -> str:
    """The machine that it was measured on, in one line."""
    machine = measured.machine
    versions = ", ".join(f"{name} {text}" for name, text in machine.versions.items())
    cores = f"{machine.threads} threads on {machine.usable_cores} of {machine.cores} cores"
    return f"{machine.cpu}, {cores}; engine {measured.engine}; {versions}; {machine.system}"


def make_page(measured: BenchResult) -> str:
    """One self-contained HTML page."""
    bundle = measured.bundle
    plots = [_task_plot(measured)] if measured.end_to_end_ms else []
    plots += [_switch_plot(measured), _rom_plot(measured)] if measured.rom_bytes.adapters else []
    lead = f"Bundle {bundle.name}: {bundle.precision}, target {bundle.target}, {bundle.picture_size} pictures. "
    report = Report(
        title="quad bench: what the bundle costs here",
        lead=lead + "Measured in a process of its own that holds the device runtime alone.",
        facts=_facts(measured),
        tables=tables(measured),
        chapters=(),
        plots=[Plots("At a glance", "Lower is better.", plots)],
        footer=(machine_line(measured), "Timings are medians and drift with the machine's load."),
    )
    return render(report)


def write_bench(measured: BenchResult, out: Path) -> None:
    """`bench.json` and `bench.html` in `out`.

    Raises:
        BackendError: the disk is full, or the place cannot be written to.
    """
    write_bytes(out / BENCH_FILE, (json.dumps(msgspec.to_builtins(measured), indent=1, allow_nan=False) + "\n").encode())
    write_bytes(out / PAGE_FILE, make_page(measured).encode())
