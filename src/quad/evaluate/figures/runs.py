"""Both sides of every pair: the same samples, the same noise, FP32 and the bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from quad.core.manifest import TaskSpec
from quad.evaluate.bench.bench import use_adapter
from quad.evaluate.figures.effect import Effect, picture_effect
from quad.evaluate.figures.paired import paired_task
from quad.evaluate.figures.quality import held_out, jobs_of
from quad.evaluate.figures.reference import Job, Reference
from quad.evaluate.figures.scores import score
from quad.runtime.pipeline import QuadPipeline
from quad.zoo.judge import Judge
from quad.zoo.samples import TASKS, Sample

Pictures = NDArray[np.uint8]
CONTROL_SEED = 10**6
Tick = Callable[[int], None]
Show = Callable[[str, float], None]  # what is being done, share of it done in [0, 1]


@dataclass(frozen=True)
class ZeroPair:
    """The first pictures of a task again, with the zero adapter on both sides: FP32 and bundle, uint8 `(M, S, S, 3)`."""

    fp: Pictures
    quantized: Pictures


@dataclass(frozen=True)
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


def bundle_pictures(pipe: QuadPipeline, task: str, jobs: Sequence[Job], tick: Tick | None = None) -> tuple[Pictures, list[float]]:
    """The bundle's pictures of some jobs with what is bound now, and the ms that each took.

    Raises:
        UsageError: the bundle has no such task.
    """
    pictures, times = [], []
    for job in jobs:
        output = pipe(job.prompt, task=task, image=job.image, mask_image=job.mask, seed=job.seed)
        pictures.append(np.asarray(output.images[0]))
        times.append(output.timings_ms["total"])
        if tick is not None:
            tick(1)
    return np.stack(pictures), times


def run_task(reference: Reference, pipe: QuadPipeline, task: str, n: int, tick: Tick | None = None, zeros: int = 0) -> TaskRun:
    """Make both sides of `n` held-out samples, with the task's own adapter.

    Args:
        tick: hears of every picture, `pictures_of` in all.
        zeros: how many of them are made again with the zero adapter.
    """
    spec, samples = pipe.tasks[task], held_out(task, n)
    use_adapter(pipe, spec.adapter)
    quantized, times = bundle_pictures(pipe, task, jobs_of(samples), tick)
    sides = []
    for first_seed in (0, CONTROL_SEED):
        sides.append(reference.pictures(task, jobs_of(samples, first_seed), spec))
        if tick is not None:
            tick(n)
    zero = _zero_pair(reference, pipe, task, jobs_of(samples[:zeros]), tick) if zeros and spec.adapter is not None else None
    return TaskRun(task, spec, samples, sides[0], sides[1], quantized, times, zero)


def _zero_pair(reference: Reference, pipe: QuadPipeline, task: str, jobs: Sequence[Job], tick: Tick | None) -> ZeroPair:
    spec = msgspec.structs.replace(pipe.tasks[task], adapter=None)
    use_adapter(pipe, None)
    quantized, _ = bundle_pictures(pipe, task, jobs, tick)
    fp = reference.pictures(task, jobs, spec)
    if tick is not None:
        tick(len(jobs))
    return ZeroPair(fp, quantized)


def pictures_of(spec: TaskSpec, n: int, zeros: int) -> int:
    """How many pictures `run_task` makes."""
    return 3 * n + (2 * min(n, zeros) if spec.adapter is not None else 0)


def run_tasks(reference: Reference, pipe: QuadPipeline, n: int, show: Show, zeros: int = 0) -> list[TaskRun]:
    """All tasks that the bundle has and that have held-out samples, both sides."""
    tasks = {task: pipe.tasks[task] for task in TASKS if task in pipe.tasks}
    total, done = sum(pictures_of(spec, n, zeros) for spec in tasks.values()), 0
    runs = []

    def tick(pictures: int) -> None:
        nonlocal done
        done += pictures
        show(task, done / total)

    for task in tasks:
        show(task, done / total)
        runs.append(run_task(reference, pipe, task, n, tick, zeros))
    return runs


def evaluate(run: TaskRun, reference: Reference, judge: Judge) -> dict[str, Any]:
    """One task's entry of `eval.json`: paired figures, and scores against the truth for FP32, bundle and VAE ceiling."""
    ceiling = reference.reconstruct(np.stack([s.truth for s in run.samples]))
    sides = (("fp", run.fp), ("quantized", run.quantized), ("ceiling", ceiling))
    scores = {name: score(run.task, run.samples, pictures, judge) for name, pictures in sides}
    return {**paired_task(run.samples, run.fp, run.quantized, run.control, judge), "scores": scores}


def effect_figures(run: TaskRun, effect: Effect | None) -> dict[str, Any]:
    """The adapter effect's part of that entry; null where the task has no adapter.

    Args:
        effect: at the U-Net's output.
    """
    own = effect.to_json() if effect is not None else {"gain": None, "sqnr_db": None}
    pictures = None
    if run.zero is not None:
        m = len(run.zero.fp)
        seen = picture_effect(run.fp[:m], run.zero.fp, run.quantized[:m], run.zero.quantized)
        pictures = None if seen is None else {"n": m, **seen.to_json()}
    return {"effect_gain": own["gain"], "effect_sqnr_db": own["sqnr_db"], "effect_pictures": pictures}


def evaluate_all(
    runs: Sequence[TaskRun], reference: Reference, engine: str, effects: Mapping[str, Effect | None], show: Show
) -> dict[str, Any]:
    """The object of `quad eval --json` (docs/formats.md).

    Args:
        effects: task -> its adapter's effect at the U-Net's output.
    """
    judge, tasks = Judge.load(), {}
    for i, run in enumerate(runs):
        show(run.task, i / len(runs))
        tasks[run.task] = {**evaluate(run, reference, judge), **effect_figures(run, effects.get(run.task))}
    return {"engine": engine, "tasks": tasks}
