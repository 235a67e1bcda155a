"""The demo itself: the shipped reference model becomes a bundle, all its tasks run from it, and a page shows what came out.

build (full precision's pictures beside it, in a process of their own) -> run, effects -> score -> laws -> bench (own process) -> report
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from safetensors import safe_open

from quad.build.build import build
from quad.build.fixed_threads import fixed_threads
from quad.build.request import BuildRequest
from quad.core.progress import Progress
from quad.core.storage.files import scratch_directory, write_bytes
from quad.evaluate.bench.bench import BenchOptions
from quad.evaluate.bench.process import measure
from quad.evaluate.figures import laws
from quad.evaluate.figures.effect import Effect, bundle_effects
from quad.evaluate.figures.evaluation import Evaluation
from quad.evaluate.figures.full_pictures import Making, making
from quad.evaluate.figures.laws import Laws
from quad.evaluate.figures.quality import QualityFigure, vae_figures
from quad.evaluate.figures.reference import Reference
from quad.evaluate.figures.runs import BundleSide, TaskRun, evaluate_all, run_tasks
from quad.evaluate.page.output import save_pictures, write_json
from quad.evaluate.page.report import render
from quad.evaluate.page.summary import DemoResult, Fp16Bytes, make_report
from quad.quantize.observe.side_by_side import Behind, side_by_side
from quad.runtime.fixed_threads import ENGINE_THREADS
from quad.runtime.pipeline import QuadPipeline
from quad.zoo.calibration import calibration_samples

FP16_BYTES = 2
EFFECT_RUNS = 4  # held-out samples a task whose U-Net calls are compared
PRECISION = "w8a16"  # what every target runs, and what the page's bars are of


@dataclass(frozen=True)
class DemoPaths:
    """The paths that the demo reads and writes."""

    model: Path
    adapters: Mapping[str, Path]
    out: Path

    @property
    def bundle(self) -> Path:
        """The bundle that it builds."""
        return self.out / "bundle"


class DemoEvaluation(Evaluation, frozen=True, kw_only=True):
    """`eval.json` of the demo: of `quad eval`, and the laws and the autoencoder's figures beside it."""

    laws: Laws
    vae: dict[str, float]


def fp16_bytes(paths: DemoPaths) -> Fp16Bytes:
    """Bytes that the same weights take as fp16 files."""

    def size(file: Path) -> int:
        with safe_open(file, "np") as tensors:
            return sum(FP16_BYTES * int(np.prod(tensors.get_slice(name).get_shape())) for name in tensors.keys())  # noqa: SIM118

    parts = [paths.model / part for part in ("unet", "vae", "text_encoder")]
    weights = sum(size(file) for part in parts for file in part.glob("*.safetensors"))
    tokenizer = (paths.model / "tokenizer" / "tokenizer.json").stat().st_size
    return Fp16Bytes(weights + tokenizer, {name: size(file) for name, file in paths.adapters.items()})


def build_bundle(paths: DemoPaths, progress: Progress) -> dict[str, Any]:
    """Build the bundle; returns the object of `quad build --json`."""
    samples = calibration_samples(paths.model, paths.adapters)
    request = BuildRequest(
        model=paths.model, adapters=paths.adapters, output=paths.bundle, samples=samples, name="toyland", precision=PRECISION
    )
    built = build(request, lambda stage, share: progress(f"build: {stage}", share)).to_json()
    return {**built, "precision": request.resolved_precision}


def demo(paths: DemoPaths, n: int, show: Callable[[str, str, float], None]) -> DemoResult:
    """The whole demo; writes everything below `paths.out`.

    Args:
        n: held-out samples a task.
        show: called with stage, the step that begins, and the stage's share done.

    Raises:
        QuadError: as the parts raise; files written so far stay.
    """
    start = time.perf_counter()
    with scratch_directory() as scratch, making(paths.model, paths.adapters, n, scratch) as full:
        built = build_bundle(paths, lambda step, share: show("build", step, share))
        write_json(paths.out / "build.json", built)
        with fixed_threads():  # networks so small compute less than a second thread waits
            evaluated = _evaluated(paths, n, full, show)
    runs, evaluation, checked, vae = evaluated.runs, evaluated.evaluation, evaluated.laws, evaluated.vae
    written = DemoEvaluation(**msgspec.structs.asdict(evaluation), laws=checked, vae={figure.name: figure.value for figure in vae})
    write_json(paths.out / "eval.json", msgspec.to_builtins(written))
    bench = measure(BenchOptions(path=paths.bundle), lambda step, share: show("measure", f"bench: {step}", 0.3 + 0.6 * share))
    write_json(paths.out / "bench.json", msgspec.to_builtins(bench))
    show("measure", "report", 0.9)
    seconds = time.perf_counter() - start
    measured = DemoResult(
        runs=runs, build=built, evaluation=evaluation, bench=bench, laws=checked, fp16_bytes=fp16_bytes(paths), vae=vae, seconds=seconds
    )
    write_bytes(paths.out / "report.html", render(make_report(measured)).encode())
    show("measure", "done", 1.0)
    return measured


@dataclass(frozen=True, kw_only=True)
class _Evaluated:
    """Measurements of the bundle against full precision."""

    runs: list[TaskRun]
    evaluation: Evaluation
    laws: Laws
    vae: list[QualityFigure]


def _evaluated(paths: DemoPaths, n: int, full: Making, show: Callable[[str, str, float], None]) -> _Evaluated:
    """Pictures of both sides, and all that is measured on them and on single calls; what does not need each other runs at once."""
    adapters = dict(paths.adapters)
    reference, pipe = Reference(paths.model, adapters), QuadPipeline.from_pretrained(paths.bundle, threads=ENGINE_THREADS)
    runs: list[TaskRun] = []
    effects: dict[str, Effect | None] = {}
    slotted: dict[str, float] = {}

    def make_pictures() -> None:
        made = full.wait(pipe.tasks)
        second = QuadPipeline.from_pretrained(paths.bundle, threads=ENGINE_THREADS)
        runs.extend(
            run_tasks(reference, pipe, n, lambda step, share: show("run", f"run: {step}", share), BundleSide(beside=(second,)), made)
        )
        for run in runs:
            save_pictures(run, paths.out / "pictures" / run.task)

    def measure_calls() -> None:
        apart = Reference(paths.model, adapters)
        effects.update(bundle_effects(pipe, apart, paths.model, adapters, EFFECT_RUNS))
        slotted.update(laws.slotted_error(paths.model, adapters, apart))

    def score() -> tuple[Evaluation, list[QualityFigure]]:
        scores = evaluate_all(runs, reference, pipe.engine, effects, lambda step, share: show("score", f"score: {step}", share))
        return scores, vae_figures(reference, {run.task: list(run.samples) for run in runs})

    side_by_side(lambda work: work(), (make_pictures, measure_calls))
    with Behind() as behind:
        switching: dict[str, bool] = {}
        behind.give(lambda: switching.update(laws.switching_is_exact(pipe)))
        evaluation, vae = score()
    show("measure", "laws", 0.0)
    checked = laws.Laws(slotted=slotted, switching=switching, runtime_import=laws.runtime_import())
    return _Evaluated(runs=runs, evaluation=evaluation, laws=checked, vae=vae)
