"""Both sides of every pair: the same samples, the same noise, FP32 and the bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from quad.core.manifest import TaskSpec
from quad.core.progress import Progress
from quad.evaluate.bench.bench import use_adapter
from quad.evaluate.figures.effect import Effect, picture_effect
from quad.evaluate.figures.evaluation import EffectFigures, Evaluation, PictureEffect, TaskEvaluation, TaskScores
from quad.evaluate.figures.paired import paired_task
from quad.evaluate.figures.quality import held_out, picture_requests
from quad.evaluate.figures.reference import PictureRequest, Reference
from quad.evaluate.figures.scores import score
from quad.runtime.pipeline import QuadPipeline
from quad.zoo.judge import Judge
from quad.zoo.samples import TASKS, Sample

Pictures = NDArray[np.uint8]
CONTROL_SEED = 10**6
PicturesMade = Callable[[int], None]  # hears how many pictures were just made
Shortcuts = Mapping[str, Any]  # words of a call that leave work out; the full-precision side leaves nothing out
NO_SHORTCUTS: Shortcuts = MappingProxyType({})


@dataclass(frozen=True)
class BundleSide:
    """How the bundle makes its pictures.

    Args:
        zeros: how many of a task's are made again with the zero adapter, on both sides.
        shortcuts: words of each call that leave work out.
    """

    zeros: int = 0
    shortcuts: Shortcuts = NO_SHORTCUTS


PLAIN = BundleSide()


@dataclass(frozen=True)
class ZeroPair:
    """The first pictures of a task again, with the zero adapter on both sides: FP32 and bundle, uint8 `(M, S, S, 3)`."""

    fp: Pictures
    quantized: Pictures


@dataclass(frozen=True, kw_only=True)
class TaskRun:
    """All pictures of one task, uint8 `(N, S, S, 3)`.

    Args:
        control: FP32 from other noise.
        times_ms: the bundle's, whole pictures.
        zero: what the adapter's effect in the pictures is measured from; None where it was not asked for, or the task has no adapter.
    """

    task: str
    spec: TaskSpec
    samples: Sequence[Sample]
    fp: Pictures
    control: Pictures
    quantized: Pictures
    times_ms: Sequence[float]
    zero: ZeroPair | None = None


def bundle_pictures(
    pipe: QuadPipeline,
    task: str,
    requests: Sequence[PictureRequest],
    on_made: PicturesMade | None = None,
    shortcuts: Shortcuts = NO_SHORTCUTS,
) -> tuple[Pictures, list[float]]:
    """The bundle's pictures of some requests with what is bound now, and the ms that each took.

    Raises:
        UsageError: the bundle has no such task.
    """
    pictures, times = [], []
    for request in requests:
        output = pipe(
            request.prompt, task=task, image=request.image, mask_image=request.mask, seed=request.seed, prompt_syntax="plain", **shortcuts
        )
        pictures.append(np.asarray(output.images[0]))
        times.append(output.timings_ms["total"])
        if on_made is not None:
            on_made(1)
    return np.stack(pictures), times


def run_task(
    reference: Reference,
    pipe: QuadPipeline,
    task: str,
    n: int,
    on_made: PicturesMade | None = None,
    side: BundleSide = PLAIN,
) -> TaskRun:
    """Make both sides of `n` held-out samples, with the task's own adapter.

    Args:
        on_made: hears of every picture, `pictures_of` in all.
        side: how the bundle makes its own.
    """
    spec, samples = pipe.tasks[task], held_out(task, n)
    use_adapter(pipe, spec.adapter)
    quantized, times = bundle_pictures(pipe, task, picture_requests(samples), on_made, side.shortcuts)
    sides = []
    for first_seed in (0, CONTROL_SEED):
        sides.append(reference.pictures(task, picture_requests(samples, first_seed), spec))
        if on_made is not None:
            on_made(n)
    zero = None
    if side.zeros and spec.adapter is not None:
        zero = _zero_pair(reference, pipe, task, picture_requests(samples[: side.zeros]), on_made, side.shortcuts)
    fp, control = sides
    return TaskRun(task=task, spec=spec, samples=samples, fp=fp, control=control, quantized=quantized, times_ms=times, zero=zero)


def _zero_pair(
    reference: Reference,
    pipe: QuadPipeline,
    task: str,
    requests: Sequence[PictureRequest],
    on_made: PicturesMade | None,
    shortcuts: Shortcuts,
) -> ZeroPair:
    spec = msgspec.structs.replace(pipe.tasks[task], adapter=None)
    use_adapter(pipe, None)
    quantized, _ = bundle_pictures(pipe, task, requests, on_made, shortcuts)
    fp = reference.pictures(task, requests, spec)
    if on_made is not None:
        on_made(len(requests))
    return ZeroPair(fp, quantized)


def pictures_of(spec: TaskSpec, n: int, zeros: int) -> int:
    """How many pictures `run_task` makes."""
    return 3 * n + (2 * min(n, zeros) if spec.adapter is not None else 0)


def run_tasks(reference: Reference, pipe: QuadPipeline, n: int, progress: Progress, side: BundleSide = PLAIN) -> list[TaskRun]:
    """All tasks that the bundle has and that have held-out samples, both sides."""
    tasks = {task: pipe.tasks[task] for task in TASKS if task in pipe.tasks}
    total, count = sum(pictures_of(spec, n, side.zeros) for spec in tasks.values()), 0
    runs = []

    def on_made(pictures: int) -> None:
        nonlocal count
        count += pictures
        progress(task, count / total)

    for task in tasks:
        progress(task, count / total)
        runs.append(run_task(reference, pipe, task, n, on_made, side))
    return runs


def evaluate(run: TaskRun, reference: Reference, judge: Judge, effect: Effect | None) -> TaskEvaluation:
    """One task's entry of `eval.json`.

    Args:
        effect: at the U-Net's output.
    """
    ceiling = reference.reconstruct(np.stack([s.truth for s in run.samples]))
    fp, quantized, vae = (score(run.task, run.samples, pictures, judge) for pictures in (run.fp, run.quantized, ceiling))
    pairs = paired_task(run.samples, run.fp, run.quantized, run.control, judge)
    effects = effect_figures(run, effect)
    scores = TaskScores(fp=fp, quantized=quantized, ceiling=vae)
    return TaskEvaluation(**msgspec.structs.asdict(pairs), scores=scores, **msgspec.structs.asdict(effects))


def effect_figures(run: TaskRun, effect: Effect | None) -> EffectFigures:
    """The adapter effect's part of that entry.

    Args:
        effect: at the U-Net's output.
    """
    pictures = None
    if run.zero is not None:
        m = len(run.zero.fp)
        visible = picture_effect(run.fp[:m], run.zero.fp, run.quantized[:m], run.zero.quantized)
        pictures = None if visible is None else PictureEffect(n=m, gain=visible.gain, sqnr_db=visible.capped_db)
    gain, sqnr_db = (None, None) if effect is None else (effect.gain, effect.capped_db)
    return EffectFigures(effect_gain=gain, effect_sqnr_db=sqnr_db, effect_pictures=pictures)


def evaluate_all(
    runs: Sequence[TaskRun], reference: Reference, engine: str, effects: Mapping[str, Effect | None], progress: Progress
) -> Evaluation:
    """All tasks of a bundle, measured.

    Args:
        effects: task -> its adapter's effect at the U-Net's output.
    """
    judge, tasks = Judge.load(), {}
    for i, run in enumerate(runs):
        progress(run.task, i / len(runs))
        tasks[run.task] = evaluate(run, reference, judge, effects.get(run.task))
    return Evaluation(engine=engine, tasks=tasks)
