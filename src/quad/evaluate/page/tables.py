"""From measured figures to tables and strips of pictures: shared by the pages of `make demo` and `quad eval`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from quad.evaluate.figures import metrics
from quad.evaluate.figures.evaluation import TaskEvaluation
from quad.evaluate.figures.quality import QualityFigure, task_figures
from quad.evaluate.figures.runs import TaskRun
from quad.evaluate.page.plots import Axis, bar_chart
from quad.evaluate.page.report import Chapter, Strip, hole_shown
from quad.evaluate.page.table import Cell, Row, Table, plain

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


@dataclass(frozen=True, kw_only=True)
class Bars:
    """Bars in dB against FP32, every task, by precision; None: no bar. Source: docs/results.md."""

    psnr_db: float | None = None
    ssim: float | None = None
    gain: tuple[float, float] | None = None

    @property
    def shown(self) -> str:
        """The bars as text."""
        parts = [f"≥ {self.psnr_db:g} dB" if self.psnr_db is not None else "", f"{self.ssim:g}" if self.ssim is not None else ""]
        parts.append(f"gain {self.gain[0]:g} to {self.gain[1]:g}" if self.gain is not None else "")
        return ", ".join(part for part in parts if part)


PAIR_BARS = {"w8a16": Bars(psnr_db=38.0, ssim=0.98, gain=(0.97, 1.03)), "mixed:80": Bars(psnr_db=33.0), "w8a8": Bars(psnr_db=25.0)}


def shown(value: float, unit: str) -> str:
    """A figure as text, in its unit."""
    return f"{100 * value:.1f} %" if unit == "%" else f"{value:.3f}" if not unit else f"{value:.1f} {unit}"


def _bar(figure: QualityFigure) -> str:
    bar = figure.bar or 0.0
    return f"{100 * bar:.0f} %" if figure.unit == "%" else f"{bar:g} {figure.unit}".strip()


def quality_rows(
    tasks: Mapping[str, TaskEvaluation], vae: Sequence[QualityFigure] = ()
) -> list[tuple[QualityFigure, QualityFigure | None]]:
    """Every row of the truth table: the FP32 figure and the bundle's (None for the VAE, measured in FP32).

    Args:
        tasks: of `eval.json`.
    """
    ceilings = {task: entry.scores.ceiling for task, entry in tasks.items()}
    counts = {task: entry.n for task, entry in tasks.items()}
    fp = {task: entry.scores.fp for task, entry in tasks.items()}
    quantized = {task: entry.scores.quantized for task, entry in tasks.items()}
    sides = [task_figures(scores, ceilings, counts) for scores in (fp, quantized)]
    return [*((figure, None) for figure in vae), *zip(*sides, strict=True)]


def quality_table(tasks: Mapping[str, TaskEvaluation], vae: Sequence[QualityFigure] = ()) -> Table:
    """Both sides against the truth."""
    rows = []
    for fp, quantized in quality_rows(tasks, vae):
        cells = tuple(Cell(shown(figure.value, figure.unit), figure.passed) if figure else Cell("") for figure in (fp, quantized))
        rows.append(Row(name=fp.name, cells=cells, bar=f"≥ {_bar(fp)}", note=fp.note))
    lead = "Held-out samples, scored against the renderer's truth by pixels or by our own attribute classifier. Notes are of the FP32 side."
    return Table(title="Is it right? Both sides against the truth", lead=lead, columns=("FP32", "bundle"), rows=rows)


def _reached(value: float, bar: float | None) -> bool | None:
    return None if bar is None else value >= bar


def pairs_table(tasks: Mapping[str, TaskEvaluation], precision: str) -> Table:
    """The bundle against FP32."""
    bars, rows = PAIR_BARS.get(precision, Bars()), []
    for task, entry in tasks.items():
        control = entry.seed_control
        cells = (
            Cell(f"{entry.psnr:.1f} dB", _reached(entry.psnr, bars.psnr_db)),
            Cell(f"{entry.ssim:.3f}", _reached(entry.ssim, bars.ssim)),
            *plain(f"{entry.psnr_min:.1f} dB", f"{entry.lpips_toy:.4f}", f"{entry.fd_toy:.2f}"),
            _gain_cell(entry.effect_gain, bars.gain),
        )
        other_seed = f"{control.psnr:.1f} dB, SSIM {control.ssim:.3f}, FD-toy {control.fd_toy:.2f}"
        rows.append(Row(name=task, cells=cells, bar=bars.shown, note=f"n = {entry.n}; another seed in FP32: {other_seed}"))
    lead = (
        "The bundle's picture against the FP32 picture of diffusers + PEFT from the same noise; mean over pictures. "
        "LPIPS-toy and FD-toy are the formulas of LPIPS and FID on our own small classifier, not those metrics. "
        "Gain: the share of the adapter's own effect on the U-Net's output that the quantized graph keeps, 1 is right."
    )
    columns = ("PSNR", "SSIM", "worst PSNR", "LPIPS-toy", "FD-toy", "gain")
    return Table(title="Is it the same? The bundle against FP32", lead=lead, columns=columns, rows=rows)


def _gain_cell(gain: float | None, bar: tuple[float, float] | None) -> Cell:
    if gain is None:
        return Cell("")
    return Cell(f"{gain:.3f}", None if bar is None else bar[0] <= gain <= bar[1])


def effect_table(tasks: Mapping[str, TaskEvaluation]) -> Table:
    """The change that each adapter makes, beside what is lost of it."""
    rows = []
    for task, entry in tasks.items():
        if entry.effect_gain is None:
            continue
        pictures = entry.effect_pictures
        visible = (f"{pictures.gain:.3f}", f"{pictures.sqnr_db:.1f} dB") if pictures else ("", "")
        cells = plain(entry.shown_gain, f"{entry.effect_sqnr_db:.1f} dB", *visible)
        rows.append(Row(name=task, cells=cells, note=f"pictures: n = {pictures.n}" if pictures else ""))
    lead = (
        "Effect = output with the adapter minus output with the zero adapter, same inputs. Gain is the share of the true effect that came "
        "through, with its standard error over runs, SQNR how cleanly; on single U-Net calls, and on whole pictures."
    )
    columns = ("gain", "SQNR", "gain, pictures", "SQNR, pictures")
    return Table(title="Is the adapter as strong?", lead=lead, columns=columns, rows=rows)


def gain_chart(gains: Mapping[str, float]) -> str:
    """Bars of how far each task's adapter gain is off 1, as SVG: bars from 0 to 1 would all look alike."""
    bars = [(task, 100 * (gain - 1)) for task, gain in gains.items()]
    return bar_chart("Adapter effect gain, percent off the true effect", Axis("off by, %"), bars, target=0.0)


def effect_gains(tasks: Mapping[str, TaskEvaluation]) -> dict[str, float]:
    """Task -> gain of its adapter's effect, of tasks that have one."""
    return {task: entry.effect_gain for task, entry in tasks.items() if entry.effect_gain is not None}


def truth_loss_table(tasks: Mapping[str, TaskEvaluation]) -> Table:
    """The cost of quantization against the truth itself, dB."""
    rows = []
    for task in (name for name in LOSS_TASKS if name in tasks):
        fp, quantized = tasks[task].truth.fp.psnr, tasks[task].truth.quantized.psnr
        loss = Cell(f"{fp - quantized:.2f} dB", fp - quantized <= TRUTH_LOSS_DB)
        cells = (*plain(f"{fp:.2f} dB", f"{quantized:.2f} dB"), loss)
        bar, note = f"≤ {TRUTH_LOSS_DB} dB lost", "PSNR against the rendered truth, whole picture"
        rows.append(Row(name=task, cells=cells, bar=bar, note=note))
    lead = "Error against the rendered truth, FP32 and bundle."
    return Table(title="What does it cost in truth?", lead=lead, columns=("FP32", "bundle", "lost"), rows=rows)


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
        strips.append(
            Strip(prompt=sample.prompt, fp=run.fp[i], quantized=run.quantized[i], facts=", ".join(facts), image=image, truth=truth)
        )
    return strips


def chapter(run: TaskRun) -> Chapter:
    """One task's pictures."""
    spec = run.spec
    adapter = f"Adapter {spec.adapter}" if spec.adapter else "No adapter"
    sampler = f"sampler {spec.sampler.kind}, {spec.sampler.steps} steps, guidance {spec.guidance:g}"
    typical = f"{float(np.median(np.asarray(run.times_ms))):.0f} ms a picture"
    return Chapter(run.task, f"{LEADS.get(run.task, '')} {adapter}; {sampler}; {typical}.", _strips(run))
