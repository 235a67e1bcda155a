"""From measured figures to tables and strips of pictures: what the pages of `make demo` and `quad eval` share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from quad.evaluate.figures import metrics
from quad.evaluate.figures.quality import Figure, task_figures
from quad.evaluate.figures.runs import TaskRun
from quad.evaluate.page.plots import Axis, bar_chart
from quad.evaluate.page.report import Chapter, Line, Strip, Table, hole_shown

ONE_TRUTH = ("removal", "transform", "sticker", "portrait")
LEADS = {
    "text-to-image": "The base itself, no adapter: a caption becomes a picture. Many pictures would be right, so no truth is shown.",
    "transform": "One attribute of the picture is changed as the words ask; everything else should stay.",
    "removal": "The marked object goes and the scene behind it is made up. The truth is the same scene rendered without it.",
    "sketch": "A line drawing and a caption become a scene. The drawing was made from the truth beside it.",
    "sticker": "The named object with a white outline on flat ground.",
    "portrait": "The same face in the asked style.",
}
TRUTH_LOSS_DB = 0.3
LOSS_TASKS = ("removal", "transform")


@dataclass(frozen=True)
class Bars:
    """Bars in dB against FP32, every task, by precision; None: no bar. Source: docs/results.md."""

    psnr_db: float | None = None
    ssim: float | None = None
    gain: tuple[float, float] | None = None

    @property
    def shown(self) -> str:
        parts = [f"≥ {self.psnr_db:g} dB" if self.psnr_db is not None else "", f"{self.ssim:g}" if self.ssim is not None else ""]
        parts.append(f"gain {self.gain[0]:g} to {self.gain[1]:g}" if self.gain is not None else "")
        return ", ".join(part for part in parts if part)


PAIR_BARS = {"w8a16": Bars(38.0, 0.98, (0.97, 1.03)), "mixed:80": Bars(33.0), "w8a8": Bars(25.0)}


def shown(value: float, unit: str) -> str:
    """A figure as text, in its unit."""
    return f"{100 * value:.1f} %" if unit == "%" else f"{value:.3f}" if not unit else f"{value:.1f} {unit}"


def _bar(figure: Figure) -> str:
    bar = figure.bar or 0.0
    return f"{100 * bar:.0f} %" if figure.unit == "%" else f"{bar:g} {figure.unit}".strip()


def quality_rows(tasks: Mapping[str, Any], vae: Sequence[Figure] = ()) -> list[tuple[Figure, Figure | None]]:
    """Every row of the truth table: the FP32 figure and the bundle's (None for the VAE, measured in FP32).

    Args:
        tasks: of `eval.json`.
    """
    ceilings = {task: entry["scores"]["ceiling"] for task, entry in tasks.items()}
    counts = {task: entry["n"] for task, entry in tasks.items()}
    by_side = [{task: entry["scores"][side] for task, entry in tasks.items()} for side in ("fp", "quantized")]
    sides = [task_figures(scores, ceilings, counts) for scores in by_side]
    return [*((figure, None) for figure in vae), *zip(*sides, strict=True)]


def quality_table(tasks: Mapping[str, Any], vae: Sequence[Figure] = ()) -> Table:
    """Both sides against the truth."""
    lines = []
    for fp, quantized in quality_rows(tasks, vae):
        cells = tuple((shown(f.value, f.unit), f.passed) if f else ("", None) for f in (fp, quantized))
        lines.append(Line(fp.name, f"≥ {_bar(fp)}", cells, fp.note))
    lead = "Held-out samples, scored against the renderer's truth by pixels or by our own attribute classifier. Notes are of the FP32 side."
    return Table("Is it right? Both sides against the truth", lead, ("FP32", "bundle"), lines)


def _reached(value: float, bar: float | None) -> bool | None:
    return None if bar is None else value >= bar


def pairs_table(tasks: Mapping[str, Any], precision: str) -> Table:
    """The bundle against FP32."""
    bars, lines = PAIR_BARS.get(precision, Bars()), []
    for task, entry in tasks.items():
        control = entry["seed_control"]
        cells = (
            (f"{entry['psnr']:.1f} dB", _reached(entry["psnr"], bars.psnr_db)),
            (f"{entry['ssim']:.3f}", _reached(entry["ssim"], bars.ssim)),
            (f"{entry['psnr_min']:.1f} dB", None),
            (f"{entry['lpips_toy']:.4f}", None),
            (f"{entry['fd_toy']:.2f}", None),
            _gain_cell(entry["effect_gain"], bars.gain),
        )
        other = f"{control['psnr']:.1f} dB, SSIM {control['ssim']:.3f}, FD-toy {control['fd_toy']:.2f}"
        lines.append(Line(task, bars.shown, cells, f"n = {entry['n']}; another seed in FP32: {other}"))
    lead = (
        "The bundle's picture against the FP32 picture of diffusers + PEFT from the same noise; mean over pictures. "
        "LPIPS-toy and FD-toy are the formulas of LPIPS and FID on our own small classifier, not those metrics. "
        "Gain: the share of the adapter's own effect on the U-Net's output that the quantized graph keeps, 1 is right."
    )
    columns = ("PSNR", "SSIM", "worst PSNR", "LPIPS-toy", "FD-toy", "gain")
    return Table("Is it the same? The bundle against FP32", lead, columns, lines)


def _gain_cell(gain: float | None, bar: tuple[float, float] | None) -> tuple[str, bool | None]:
    if gain is None:
        return "", None
    return f"{gain:.3f}", None if bar is None else bar[0] <= gain <= bar[1]


def effect_table(tasks: Mapping[str, Any]) -> Table:
    """What each adapter changes, beside what is lost of it."""
    lines = []
    for task, entry in tasks.items():
        if entry["effect_gain"] is None:
            continue
        pictures = entry["effect_pictures"]
        seen = (f"{pictures['gain']:.3f}", f"{pictures['sqnr_db']:.1f} dB") if pictures else ("", "")
        texts = (f"{entry['effect_gain']:.3f}", f"{entry['effect_sqnr_db']:.1f} dB", *seen)
        note = f"pictures: n = {pictures['n']}" if pictures else ""
        lines.append(Line(task, "", tuple((text, None) for text in texts), note))
    lead = (
        "Effect = output with the adapter minus output with the zero adapter, same inputs. Gain is the share of the true effect that came "
        "through, SQNR how cleanly; on single U-Net calls, and on whole pictures."
    )
    return Table("Is the adapter as strong?", lead, ("gain", "SQNR", "gain, pictures", "SQNR, pictures"), lines)


def gain_chart(tasks: Mapping[str, Any]) -> str:
    """Bars of how far each adapter's gain is off 1, as SVG: bars from 0 to 1 would all look alike."""
    bars = [(task, 100 * (entry["effect_gain"] - 1)) for task, entry in tasks.items() if entry["effect_gain"] is not None]
    return bar_chart("Adapter effect gain, percent off the true effect", Axis("off by, %"), bars, target=0.0)


def truth_loss_table(tasks: Mapping[str, Any]) -> Table:
    """What quantization costs against the truth itself, dB."""
    lines = []
    for task in (name for name in LOSS_TASKS if name in tasks):
        fp, quantized = (tasks[task]["truth"][side]["psnr"] for side in ("fp", "quantized"))
        cells = ((f"{fp:.2f} dB", None), (f"{quantized:.2f} dB", None), (f"{fp - quantized:.2f} dB", fp - quantized <= TRUTH_LOSS_DB))
        lines.append(Line(task, f"≤ {TRUTH_LOSS_DB} dB lost", cells, "PSNR against the rendered truth, whole picture"))
    return Table("What does it cost in truth?", "Error against the rendered truth, FP32 and bundle.", ("FP32", "bundle", "lost"), lines)


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


def chapter(run: TaskRun) -> Chapter:
    """One task's pictures."""
    spec = run.spec
    who = f"Adapter {spec.adapter}" if spec.adapter else "No adapter"
    how = f"sampler {spec.sampler.kind}, {spec.sampler.steps} steps, guidance {spec.guidance:g}"
    typical = f"{float(np.median(np.asarray(run.times_ms))):.0f} ms a picture"
    return Chapter(run.task, f"{LEADS.get(run.task, '')} {who}; {how}; {typical}.", _strips(run))
