"""The page of `make demo`: every bar with both sides beside it, reached or missed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quad.evaluate.figures.quality import Figure
from quad.evaluate.figures.runs import TaskRun
from quad.evaluate.page.profile_table import profile_table
from quad.evaluate.page.report import DIFFERENCE_GAIN, Line, Report, Table
from quad.evaluate.page.tables import chapter, effect_table, pairs_table, quality_table

SWITCH_MS = 5.0
SLOTTED_ERROR = 1e-4
IMPORT_SECONDS = 1.0


@dataclass(frozen=True)
class Measured:
    """All that a demo measured: the objects of `build.json`, `eval.json`, `bench.json`, the pictures and the laws.

    Args:
        laws: `slotted` (error by adapter), `switching` (law -> holds), `import` (seconds, heavy).
        fp16_bytes: what base and adapters take as fp16 files, `{"shared": n, "adapters": {name: n}}`.
    """

    runs: Sequence[TaskRun]
    build: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    bench: Mapping[str, Any]
    laws: Mapping[str, Any]
    fp16_bytes: Mapping[str, Any]
    vae: Sequence[Figure]
    seconds: float


def _megabytes(n_bytes: float) -> str:
    return f"{n_bytes / 1e6:.1f} MB"


def _law_lines(laws: Mapping[str, Any]) -> list[Line]:
    lines = []
    if laws.get("slotted"):
        worst = max(laws["slotted"].values())
        name = "float one-for-all network against diffusers + PEFT, worst adapter"
        note = "largest error over the output's RMS"
        lines.append(Line(name, f"≤ {SLOTTED_ERROR:.0e}", ((f"{worst:.1e}", worst <= SLOTTED_ERROR),), note))
    for key, name in (("a_b_a", "adapter A, B, A again"), ("base_after_unload", "base after unload")):
        if key in laws.get("switching", {}):
            holds = laws["switching"][key]
            lines.append(Line(name, "bit for bit", (("equal" if holds else "differs", holds),), "final latents compared"))
    seconds, heavy = laws["import"]["seconds"], laws["import"]["heavy"]
    good = seconds <= IMPORT_SECONDS and not heavy
    note = f"loads {', '.join(heavy)}" if heavy else "best of three; no torch, diffusers, transformers or onnx loaded"
    lines.append(Line("import of the runtime", f"≤ {IMPORT_SECONDS:.0f} s", ((f"{seconds:.2f} s", good),), note))
    return lines


def _device(measured: Measured) -> Table:
    bench, fp16 = measured.bench, measured.fp16_bytes
    switch, rom = bench["switch"], bench["rom_bytes"]
    lines = _law_lines(measured.laws)
    warm, cold = switch["warm_ms"], switch["cold_ms"]
    bar = f"≤ {SWITCH_MS:.0f} ms"
    lines.append(Line("adapter switch, warm", bar, ((f"{warm:.2f} ms", warm <= SWITCH_MS),), "no graph is loaded again"))
    lines.append(Line("adapter switch, cold", "", ((f"{cold:.2f} ms", None),), "file read and its digest checked"))
    share = rom["shared"] / fp16["shared"]
    note = f"{share:.2f} of the fp16 files, {_megabytes(fp16['shared'])}"
    lines.append(Line("shared part", "about half", ((_megabytes(rom["shared"]), None),), note))
    for name, n_bytes in rom["adapters"].items():
        note = f"fp16 file {_megabytes(fp16['adapters'].get(name, 0))}; padded to the slots' rank"
        lines.append(Line(f"adapter {name}", "", ((_megabytes(n_bytes), None),), note))
    for name, times in bench["components"].items():
        note = f"95 % under {times['p95_ms']:.1f} ms" + (", one step without guidance" if name == "unet" else "")
        lines.append(Line(name, "", ((f"{times['median_ms']:.1f} ms", None),), note))
    lead = f"Engine {bench['engine']}, {bench['threads']} threads, this machine's CPU; timings drift with its load."
    return Table("What does it cost? The bundle on this machine", lead, ("measured",), lines)


def make_report(measured: Measured) -> Report:
    """The page's content."""
    tasks = measured.evaluation["tasks"]
    precision = measured.build.get("precision", "w8a16")
    shared, fp16 = measured.bench["rom_bytes"]["shared"], measured.fp16_bytes["shared"]
    facts = [
        (f"shared part, {shared / fp16:.2f} of the fp16 files", _megabytes(shared)),
        ("worst task against FP32", f"{min((entry['psnr'] for entry in tasks.values()), default=0.0):.1f} dB"),
        ("to switch the task, warm", f"{measured.bench['switch']['warm_ms']:.2f} ms"),
        ("peak memory of the runtime", _megabytes(measured.bench["peak_ram_bytes"])),
        ("to build the bundle", f"{measured.build['seconds']:.0f} s"),
        ("this demo in all", f"{measured.seconds:.0f} s"),
    ]
    lead = (
        f"One frozen {precision} graph, {len(measured.runs)} tasks. LoRA weights are integer inputs of "
        "the graph: changing the task swaps buffers. All pictures in the column 'quantized' come from the bundle, without torch."
    )
    footer = (f"Differences are absolute and {DIFFERENCE_GAIN} times amplified. Pictures are 64x64 pixels, three times enlarged.",)
    chapters = [chapter(run) for run in measured.runs]
    found = (quality_table(tasks, measured.vae), pairs_table(tasks, precision), effect_table(tasks), profile_table(measured.build))
    tables = tuple(table for table in found if table is not None)
    return Report("quad: one graph, six tasks", lead, facts, tables, chapters, (_device(measured),), footer)
