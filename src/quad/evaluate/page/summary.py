"""The page of `make demo`: every bar with both sides beside it, reached or missed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quad.evaluate.bench.results import BenchResult
from quad.evaluate.figures.evaluation import Evaluation
from quad.evaluate.figures.laws import Laws
from quad.evaluate.figures.quality import QualityFigure
from quad.evaluate.figures.runs import TaskRun
from quad.evaluate.page.profile_table import profile_table
from quad.evaluate.page.report import DIFFERENCE_GAIN, Report
from quad.evaluate.page.table import Cell, Row, Table, plain
from quad.evaluate.page.tables import chapter, effect_table, pairs_table, quality_table

SWITCH_MS = 5.0
SLOTTED_ERROR = 1e-4
IMPORT_SECONDS = 1.0


@dataclass(frozen=True)
class Fp16Bytes:
    """Bytes of the same weights as fp16 files: the base with its tokenizer, and each adapter."""

    shared: int
    adapters: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """All that a demo demo.

    Args:
        build: the object of `build.json`.
        seconds: of the whole demo.
    """

    runs: Sequence[TaskRun]
    build: Mapping[str, Any]
    evaluation: Evaluation
    bench: BenchResult
    laws: Laws
    fp16_bytes: Fp16Bytes
    vae: Sequence[QualityFigure]
    seconds: float


def _megabytes(n_bytes: float) -> str:
    return f"{n_bytes / 1e6:.1f} MB"


def _law_rows(laws: Laws) -> list[Row]:
    rows = []
    if laws.slotted:
        worst = max(laws.slotted.values())
        name = "float one-for-all network against diffusers + PEFT, worst adapter"
        note = "largest error over the output's RMS"
        error = Cell(f"{worst:.1e}", worst <= SLOTTED_ERROR)
        rows.append(Row(name=name, cells=(error,), bar=f"≤ {SLOTTED_ERROR:.0e}", note=note))
    for key, name in (("a_b_a", "adapter A, B, A again"), ("base_after_unload", "base after unload")):
        if key in laws.switching:
            verdict = Cell("equal" if laws.switching[key] else "differs", laws.switching[key])
            rows.append(Row(name=name, cells=(verdict,), bar="bit for bit", note="final latents compared"))
    seconds, heavy = laws.runtime_import.seconds, laws.runtime_import.heavy
    fast = Cell(f"{seconds:.2f} s", seconds <= IMPORT_SECONDS and not heavy)
    note = f"loads {', '.join(heavy)}" if heavy else "best of three; no torch, diffusers, transformers or onnx loaded"
    rows.append(Row(name="import of the runtime", cells=(fast,), bar=f"≤ {IMPORT_SECONDS:.0f} s", note=note))
    return rows


def _device(demo: DemoResult) -> Table:
    bench, fp16 = demo.bench, demo.fp16_bytes
    switch, rom = bench.switch, bench.rom_bytes
    rows = _law_rows(demo.laws)
    warm = Cell(f"{switch.warm_ms:.2f} ms", switch.warm_ms <= SWITCH_MS)
    rows.append(Row(name="adapter switch, warm", cells=(warm,), bar=f"≤ {SWITCH_MS:.0f} ms", note="no graph is loaded again"))
    cold = plain(f"{switch.cold_ms:.2f} ms")
    rows.append(Row(name="adapter switch, cold", cells=cold, note="file read and its digest checked"))
    note = f"{rom.shared / fp16.shared:.2f} of the fp16 files, {_megabytes(fp16.shared)}"
    rows.append(Row(name="shared part", cells=plain(_megabytes(rom.shared)), bar="about half", note=note))
    for name, n_bytes in rom.adapters.items():
        note = f"fp16 file {_megabytes(fp16.adapters.get(name, 0))}; padded to the slots' rank"
        rows.append(Row(name=f"adapter {name}", cells=plain(_megabytes(n_bytes)), note=note))
    for name, times in bench.components.items():
        note = f"95 % under {times.p95_ms:.1f} ms" + (", one step without guidance" if name == "unet" else "")
        rows.append(Row(name=name, cells=plain(f"{times.median_ms:.1f} ms"), note=note))
    lead = f"Engine {bench.engine}, {bench.threads} threads, this machine's CPU; timings drift with its load."
    return Table(title="What does it cost? The bundle on this machine", lead=lead, columns=("measured",), rows=rows)


def make_report(demo: DemoResult) -> Report:
    """The page's content."""
    tasks = demo.evaluation.tasks
    precision = demo.build.get("precision", "w8a16")
    shared, fp16 = demo.bench.rom_bytes.shared, demo.fp16_bytes.shared
    facts = [
        (f"shared part, {shared / fp16:.2f} of the fp16 files", _megabytes(shared)),
        ("worst task against FP32", f"{min((entry.psnr for entry in tasks.values()), default=0.0):.1f} dB"),
        ("to switch the task, warm", f"{demo.bench.switch.warm_ms:.2f} ms"),
        ("peak memory of the runtime", _megabytes(demo.bench.peak_ram_bytes)),
        ("to build the bundle", f"{demo.build['seconds']:.0f} s"),
        ("this demo in all", f"{demo.seconds:.0f} s"),
    ]
    lead = (
        f"One frozen {precision} graph, {len(demo.runs)} tasks. LoRA weights are integer inputs of "
        "the graph: changing the task swaps buffers. All pictures in the column 'quantized' come from the bundle, without torch."
    )
    footer = (f"Differences are absolute and {DIFFERENCE_GAIN} times amplified. Pictures are 64x64 pixels, three times enlarged.",)
    chapters = [chapter(run) for run in demo.runs]
    leading = (quality_table(tasks, demo.vae), pairs_table(tasks, precision), effect_table(tasks), profile_table(demo.build))
    tables = tuple(table for table in leading if table is not None)
    return Report(
        title="quad: one graph, six tasks",
        lead=lead,
        facts=facts,
        tables=tables,
        chapters=chapters,
        closing=(_device(demo),),
        footer=footer,
    )
