"""Both sides of every pair: the same samples, the same noise, FP32 and the bundle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quad.core.manifest import TaskSpec
from quad.evaluate.paired import paired_task
from quad.evaluate.quality import held_out, jobs_of
from quad.evaluate.reference import Job, Reference
from quad.evaluate.scores import score
from quad.runtime.pipeline import QuadPipeline
from quad.zoo.judge import Judge
from quad.zoo.samples import Sample

Pictures = NDArray[np.uint8]
CONTROL_SEED = 10**6
Tick = Callable[[int], None]


@dataclass(frozen=True)
class TaskRun:
    """All pictures of one task, uint8 `(N, S, S, 3)`; `control` is FP32 from other noise, `times_ms` the bundle's, whole pictures."""

    task: str
    spec: TaskSpec
    samples: Sequence[Sample]
    fp: Pictures
    control: Pictures
    quantized: Pictures
    times_ms: Sequence[float]


def bundle_pictures(pipe: QuadPipeline, task: str, jobs: Sequence[Job], tick: Tick | None = None) -> tuple[Pictures, list[float]]:
    """The bundle's pictures of some jobs, and the ms that each took. Each task uses its own adapter.

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


def run_task(reference: Reference, pipe: QuadPipeline, task: str, n: int, tick: Tick | None = None) -> TaskRun:
    """Make both sides of `n` held-out samples; `tick` hears of every picture, 3 n in all."""
    spec, samples = pipe.tasks[task], held_out(task, n)
    jobs = jobs_of(samples)
    quantized, times = bundle_pictures(pipe, task, jobs, tick)
    sides = []
    for first_seed in (0, CONTROL_SEED):
        sides.append(reference.pictures(task, jobs_of(samples, first_seed), spec))
        if tick is not None:
            tick(n)
    return TaskRun(task, spec, samples, sides[0], sides[1], quantized, times)


def evaluate(run: TaskRun, reference: Reference, judge: Judge) -> dict[str, Any]:
    """One task's entry of `eval.json`: paired figures, and scores against the truth for FP32, bundle and VAE ceiling."""
    ceiling = reference.reconstruct(np.stack([s.truth for s in run.samples]))
    sides = (("fp", run.fp), ("quantized", run.quantized), ("ceiling", ceiling))
    scores = {name: score(run.task, run.samples, pictures, judge) for name, pictures in sides}
    return {**paired_task(run.samples, run.fp, run.quantized, run.control, judge), "scores": scores}
