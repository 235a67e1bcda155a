"""From measured figures to the page: every bar of issue 2 with both sides beside it, reached or missed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from quad.evaluate import metrics
from quad.evaluate.quality import Figure, task_figures
from quad.evaluate.report import DIFFERENCE_GAIN, Chapter, Line, Report, Strip, Table, hole_shown
from quad.evaluate.runs import TaskRun

PAIR_PSNR_DB, PAIR_SSIM = 33.0, 0.94
SWITCH_MS = 5.0
SLOTTED_ERROR = 1e-4
IMPORT_SECONDS = 1.0
ONE_TRUTH = ("removal", "transform", "sticker", "portrait")
LEADS = {
    "text-to-image": "The base itself, no adapter: a caption becomes a picture. Many pictures would be right, so no truth is shown.",
    "transform": "One attribute of the picture is changed as the words ask; everything else should stay.",
    "removal": "The marked object goes and the scene behind it is made up. The truth is the same scene rendered without it.",
    "sketch": "A line drawing and a caption become a scene. The drawing was made from the truth beside it.",
    "sticker": "The named object with a white outline on flat ground.",
    "portrait": "The same face in the asked style.",
}


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


def shown(value: float, unit: str) -> str:
    """A figure as text, in its unit."""
    return f"{100 * value:.1f} %" if unit == "%" else f"{value:.3f}" if not unit else f"{value:.1f} {unit}"


def _bar(figure: Figure) -> str:
    bar = figure.bar or 0.0
    return f"{100 * bar:.0f} %" if figure.unit == "%" else f"{bar:g} {figure.unit}".strip()


def _megabytes(n_bytes: float) -> str:
    return f"{n_bytes / 1e6:.1f} MB"


def quality_rows(measured: Measured) -> list[tuple[Figure, Figure | None]]:
    """Every row of the truth table: the FP32 figure and the bundle's (None for the VAE, measured in FP32)."""
    tasks = measured.evaluation["tasks"]
    ceilings = {task: entry["scores"]["ceiling"] for task, entry in tasks.items()}
    counts = {task: entry["n"] for task, entry in tasks.items()}
    by_side = [{task: entry["scores"][side] for task, entry in tasks.items()} for side in ("fp", "quantized")]
    sides = [task_figures(scores, ceilings, counts) for scores in by_side]
    return [*((figure, None) for figure in measured.vae), *zip(*sides, strict=True)]


def _quality(measured: Measured) -> Table:
    lines = []
    for fp, quantized in quality_rows(measured):
        cells = tuple((shown(f.value, f.unit), f.passed) if f else ("", None) for f in (fp, quantized))
        lines.append(Line(fp.name, f"≥ {_bar(fp)}", cells, fp.note))
    lead = "Held-out samples, scored against the renderer's truth by pixels or by our own attribute classifier. Notes are of the FP32 side."
    return Table("Is it right? Both sides against the truth", lead, ("FP32", "bundle"), lines)


def _pairs(measured: Measured) -> Table:
    lines = []
    for task, entry in measured.evaluation["tasks"].items():
        control = entry["seed_control"]
        cells = (
            (f"{entry['psnr']:.1f} dB", entry["psnr"] >= PAIR_PSNR_DB),
            (f"{entry['ssim']:.3f}", entry["ssim"] >= PAIR_SSIM),
            (f"{entry['psnr_min']:.1f} dB", None),
            (f"{entry['lpips_toy']:.4f}", None),
            (f"{entry['fd_toy']:.2f}", None),
        )
        other = f"{control['psnr']:.1f} dB, SSIM {control['ssim']:.3f}, FD-toy {control['fd_toy']:.2f}"
        note = f"n = {entry['n']}; another seed in FP32: {other}"
        lines.append(Line(task, f"≥ {PAIR_PSNR_DB:.0f} dB, {PAIR_SSIM}", cells, note))
    lead = (
        "The bundle's picture against the FP32 picture of diffusers + PEFT from the same noise; mean over pictures. "
        "LPIPS-toy and FD-toy are the formulas of LPIPS and FID on our own small classifier, not those metrics."
    )
    return Table("Is it the same? The bundle against FP32", lead, ("PSNR", "SSIM", "worst PSNR", "LPIPS-toy", "FD-toy"), lines)


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


def _strips(run: TaskRun) -> list[Strip]:
    strips = []
    for i, sample in enumerate(run.samples):
        image = sample.image
        if image is not None and sample.mask is not None:
            image = hole_shown(image, sample.mask)
        facts = [f"{metrics.psnr(run.fp[i], run.quantized[i]):.1f} dB to FP32", f"{run.times_ms[i]:.0f} ms"]
        if run.task in ONE_TRUTH:
            facts.insert(0, f"FP32 {metrics.psnr(run.fp[i], sample.truth):.1f} dB to the truth")
        truth = None if run.task == "text-to-image" else sample.truth
        strips.append(Strip(sample.prompt, run.fp[i], run.quantized[i], ", ".join(facts), image, truth))
    return strips


def _chapter(run: TaskRun) -> Chapter:
    spec = run.spec
    who = f"Adapter {spec.adapter}" if spec.adapter else "No adapter"
    how = f"sampler {spec.sampler.kind}, {spec.sampler.steps} steps, guidance {spec.guidance:g}"
    typical = f"{float(np.median(np.asarray(run.times_ms))):.0f} ms a picture"
    return Chapter(run.task, f"{LEADS.get(run.task, '')} {who}; {how}; {typical}.", _strips(run))


def make_report(measured: Measured) -> Report:
    """The page's content."""
    tasks = measured.evaluation["tasks"].values()
    shared, fp16 = measured.bench["rom_bytes"]["shared"], measured.fp16_bytes["shared"]
    facts = [
        (f"shared part, {shared / fp16:.2f} of the fp16 files", _megabytes(shared)),
        ("worst task against FP32", f"{min((entry['psnr'] for entry in tasks), default=0.0):.1f} dB"),
        ("to switch the task, warm", f"{measured.bench['switch']['warm_ms']:.2f} ms"),
        ("peak memory of the runtime", _megabytes(measured.bench["peak_ram_bytes"])),
        ("to build the bundle", f"{measured.build['seconds']:.0f} s"),
        ("this demo in all", f"{measured.seconds:.0f} s"),
    ]
    lead = (
        f"One frozen {measured.build.get('precision', 'w8a16')} graph, {len(measured.runs)} tasks. LoRA weights are integer inputs of "
        "the graph: changing the task swaps buffers. All pictures in the column 'quantized' come from the bundle, without torch."
    )
    footer = (f"Differences are absolute and {DIFFERENCE_GAIN} times amplified. Pictures are 64x64 pixels, three times enlarged.",)
    chapters = [_chapter(run) for run in measured.runs]
    return Report("quad: one graph, six tasks", lead, facts, (_quality(measured), _pairs(measured)), chapters, (_device(measured),), footer)
