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
from quad.evaluate.figures.full_pictures import CONTROL_SEED as CONTROL_SEED
from quad.evaluate.figures.full_pictures import FullPictures
from quad.evaluate.figures.paired import paired_task
from quad.evaluate.figures.quality import held_out, picture_requests
from quad.evaluate.figures.reference import BATCH, PictureRequest, Reference
from quad.evaluate.figures.scores import score
from quad.quantize.observe.side_by_side import side_by_side
from quad.quantize.processes.dealt import Codec, dealt, json_codec
from quad.runtime.pipeline import QuadPipeline
from quad.zoo.judge import Judge
from quad.zoo.samples import Sample, with_samples

Pictures = NDArray[np.uint8]
Shortcuts = Mapping[str, Any]  # words of a call that leave work out; the full-precision side leaves nothing out
NO_SHORTCUTS: Shortcuts = MappingProxyType({})


@dataclass(frozen=True)
class BundleSide:
    """How the bundle makes its pictures.

    Args:
        zeros: how many of a task's are made again with the zero adapter, on both sides.
        shortcuts: words of each call that leave work out.
        beside: more pipelines of the bundle, each of which makes its share of a task's pictures on a core of its own.
    """

    zeros: int = 0
    shortcuts: Shortcuts = field(default_factory=dict)
    beside: Sequence[QuadPipeline] = ()


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


@dataclass(frozen=True, kw_only=True)
class _Maker:
    """Makes both sides of a task's parts, at once where torch keeps to one thread: neither touches what the other uses."""

    reference: Reference
    pipe: QuadPipeline
    side: BundleSide
    made: Mapping[str, FullPictures]

    def pictures(self, part: _Part) -> _Pictures:
        """Of one part, with the task's own adapter."""
        quantized, full = side_by_side(lambda make: make(part), (self._quantized, self._full))
        return _Pictures({**quantized.sides, **full.sides}, quantized.times_ms)

    def _samples(self, part: _Part) -> list[Sample]:
        return held_out(part.task, part.last, self.reference.picture_size.width)[part.first :]

    def _again(self, part: _Part) -> Sequence[PictureRequest]:
        """The requests that are made again with the zero adapter."""
        samples = self._samples(part)
        has_adapter = self.pipe.tasks[part.task].adapter is not None
        return picture_requests(samples[: max(0, self.side.zeros - part.first)], part.first) if has_adapter else ()

    def _quantized(self, part: _Part) -> _Pictures:
        task, samples = part.task, self._samples(part)
        pictures, times = self._shared(task, picture_requests(samples, part.first))
        sides: dict[str, Pictures] = {"quantized": pictures}
        if again := self._again(part):
            use_adapter(self.pipe, None)
            sides["zero_quantized"], _ = bundle_pictures(self.pipe, task, again, self.side.shortcuts)
        return _Pictures(sides, times)

    def _shared(self, task: str, requests: Sequence[PictureRequest]) -> tuple[Pictures, list[float]]:
        """The bundle's pictures with the task's adapter, every so many of them by one pipeline."""
        pipes = (self.pipe, *self.side.beside)[: len(requests)]

        def share(lane: int) -> tuple[Pictures, list[float]]:
            use_adapter(pipes[lane], self.pipe.tasks[task].adapter)
            return bundle_pictures(pipes[lane], task, requests[lane :: len(pipes)], self.side.shortcuts)

        shares = side_by_side(share, range(len(pipes)))
        places = np.argsort([place for lane in range(len(pipes)) for place in range(lane, len(requests), len(pipes))])
        times = [ms for _, of_lane in shares for ms in of_lane]
        return np.concatenate([pictures for pictures, _ in shares])[places], [times[place] for place in places]

    def _full(self, part: _Part) -> _Pictures:
        task, spec = part.task, self.pipe.tasks[part.task]
        rows = slice(part.first, part.last)
        if task in self.made:
            sides = {"fp": self.made[task].pictures[rows], "control": self.made[task].control[rows]}
        else:
            samples = self._samples(part)
            requests = {"fp": picture_requests(samples, part.first), "control": picture_requests(samples, CONTROL_SEED + part.first)}
            sides = {name: self.reference.pictures(task, each, spec) for name, each in requests.items()}
        if again := self._again(part):
            sides["zero_fp"] = self.reference.pictures(task, again, msgspec.structs.replace(spec, adapter=None))
        return _Pictures(sides, ())


def run_tasks(
    reference: Reference, pipe: QuadPipeline, n: int, progress: Progress, side: BundleSide = PLAIN,
    made: Mapping[str, FullPictures] = MappingProxyType({}),
) -> list[TaskRun]:  # fmt: skip
    """All tasks that the bundle has and that have held-out samples, `n` each, both sides; processes of one launch share the pictures.

    Args:
        side: how the bundle makes its own.
        made: full precision's by task, as far as they are there.
    """
    tasks = {task: pipe.tasks[task] for task in with_samples(pipe.tasks)}
    parts = [part for task in tasks for part in _parts(task, n)]

    def following() -> Iterator[_Part]:
        for number, part in enumerate(parts):
            progress(part.task, number / len(parts))
            yield part

    maker = _Maker(reference=reference, pipe=pipe, side=side, made=made)
    pictures: dict[str, list[_Pictures]] = {task: [] for task in tasks}
    for part, of_part in zip(parts, dealt(maker.pictures, following(), _CODEC), strict=True):
        pictures[part.task].append(of_part)
    size = reference.picture_size.width
    return [_task_run(task, spec, held_out(task, n, size), pictures[task]) for task, spec in tasks.items()]


def run_task(reference: Reference, pipe: QuadPipeline, task: str, n: int) -> TaskRun:
    """Both sides of one task alone, `n` held-out samples, in this process."""
    maker = _Maker(reference=reference, pipe=pipe, side=PLAIN, made={})
    samples = held_out(task, n, reference.picture_size.width)
    return _task_run(task, pipe.tasks[task], samples, [maker.pictures(part) for part in _parts(task, n)])


def _parts(task: str, n: int) -> list[_Part]:
    return [_Part(task, first, min(n, first + BATCH)) for first in range(0, n, BATCH)]


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
    gain, error, sqnr_db = (None, None, None) if effect is None else (effect.gain, effect.gain_error, effect.capped_db)
    return EffectFigures(effect_gain=gain, effect_gain_error=error, effect_sqnr_db=sqnr_db, effect_pictures=pictures)


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
