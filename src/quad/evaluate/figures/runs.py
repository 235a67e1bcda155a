"""Both sides of every pair: the same samples, the same noise, FP32 and the bundle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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
from quad.evaluate.figures.reference import BATCH, PictureRequest, Reference
from quad.evaluate.figures.scores import score
from quad.quantize.processes.dealt import Codec, dealt, json_codec
from quad.runtime.pipeline import QuadPipeline
from quad.zoo.judge import Judge
from quad.zoo.samples import TASKS, Sample

Pictures = NDArray[np.uint8]
CONTROL_SEED = 10**6
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
    shortcuts: Shortcuts = field(default_factory=dict)


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
    pipe: QuadPipeline, task: str, requests: Sequence[PictureRequest], shortcuts: Shortcuts = NO_SHORTCUTS
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
    return np.stack(pictures), times


@dataclass(frozen=True)
class _Part:
    """Samples `first` to `last`, without it, of a task: what one process makes at a time, as the reference makes them in one batch."""

    task: str
    first: int
    last: int


@dataclass(frozen=True)
class _Pictures:
    """A part's pictures by side: `fp`, `control`, `quantized`, and with the zero adapter `zero_fp`, `zero_quantized`; the bundle's ms."""

    sides: Mapping[str, Pictures]
    times_ms: Sequence[float]


_CODEC = Codec[_Pictures](lambda made: (list(made.times_ms), made.sides), lambda packed: _Pictures(packed[1], packed[0]))


def _part_pictures(reference: Reference, pipe: QuadPipeline, part: _Part, side: BundleSide) -> _Pictures:
    """Both sides of a part, with the task's own adapter."""
    task, spec = part.task, pipe.tasks[part.task]
    samples = held_out(task, part.last)[part.first :]
    use_adapter(pipe, spec.adapter)
    sides: dict[str, Pictures] = {}
    sides["quantized"], times = bundle_pictures(pipe, task, picture_requests(samples, part.first), side.shortcuts)
    for name, first_seed in (("fp", 0), ("control", CONTROL_SEED)):
        sides[name] = reference.pictures(task, picture_requests(samples, first_seed + part.first), spec)
    again = picture_requests(samples[: max(0, side.zeros - part.first)], part.first) if spec.adapter is not None else []
    if again:
        use_adapter(pipe, None)
        sides["zero_quantized"], _ = bundle_pictures(pipe, task, again, side.shortcuts)
        sides["zero_fp"] = reference.pictures(task, again, msgspec.structs.replace(spec, adapter=None))
    return _Pictures(sides, times)


def run_tasks(reference: Reference, pipe: QuadPipeline, n: int, progress: Progress, side: BundleSide = PLAIN) -> list[TaskRun]:
    """All tasks that the bundle has and that have held-out samples, `n` each, both sides; processes of one launch share the pictures.

    Args:
        side: how the bundle makes its own.
    """
    tasks = {task: pipe.tasks[task] for task in TASKS if task in pipe.tasks}
    parts = [_Part(task, first, min(n, first + BATCH)) for task in tasks for first in range(0, n, BATCH)]

    def following() -> Iterator[_Part]:
        for number, part in enumerate(parts):
            progress(part.task, number / len(parts))
            yield part

    made: dict[str, list[_Pictures]] = {task: [] for task in tasks}
    for part, pictures in zip(parts, dealt(lambda part: _part_pictures(reference, pipe, part, side), following(), _CODEC), strict=True):
        made[part.task].append(pictures)
    return [_task_run(task, spec, held_out(task, n), made[task]) for task, spec in tasks.items()]


def _task_run(task: str, spec: TaskSpec, samples: Sequence[Sample], parts: Sequence[_Pictures]) -> TaskRun:
    def side(name: str) -> Pictures:
        return np.concatenate([part.sides[name] for part in parts if name in part.sides])

    return TaskRun(
        task=task,
        spec=spec,
        samples=samples,
        fp=side("fp"),
        control=side("control"),
        quantized=side("quantized"),
        times_ms=[ms for part in parts for ms in part.times_ms],
        zero=ZeroPair(side("zero_fp"), side("zero_quantized")) if "zero_fp" in parts[0].sides else None,
    )


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
    judge = Judge.load()

    def following() -> Iterator[TaskRun]:
        for i, run in enumerate(runs):
            progress(run.task, i / len(runs))
            yield run

    measured = dealt(lambda run: evaluate(run, reference, judge, effects.get(run.task)), following(), json_codec(TaskEvaluation))
    return Evaluation(engine=engine, tasks={run.task: task for run, task in zip(runs, measured, strict=True)})
