"""`quad ablate`: every row of the plan is built, run and compared with full precision; the paper's tables 4 and 5, and ours.

A row that was measured is kept in `rows.json` with what it was measured from, so that a run that was killed goes on where it stopped.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from quad.build.build import build
from quad.build.calls.call_recorder import spread
from quad.build.fixed_threads import fixed_threads
from quad.build.request import BuildRequest
from quad.core.device import CPU
from quad.core.digests import digest
from quad.core.errors import InputError, UsageError, mismatch
from quad.core.processes import is_main
from quad.core.progress import Progress
from quad.evaluate.ablation.later import STRENGTHS, LaterAdapters
from quad.evaluate.ablation.later_truth import LaterCall, call_of
from quad.evaluate.ablation.pictures import first_pictures, keep_pictures
from quad.evaluate.ablation.plan import BASELINE, MOST_SENSITIVE, AblationRow
from quad.evaluate.ablation.reference_side import ReferenceSide
from quad.evaluate.ablation.results import AblatedTask, AblationResult, LaterTable, StoredRow, StoredRows
from quad.evaluate.bench.bench import graph_times, use_adapter
from quad.evaluate.bench.footprint import rom_bytes
from quad.evaluate.figures.effect import network_effects, open_unet
from quad.evaluate.figures.identity import adapter_identities
from quad.evaluate.figures.metrics import psnr
from quad.evaluate.figures.paired import extract, pair_figures
from quad.evaluate.figures.quality import check_world
from quad.evaluate.figures.runs import Pictures, bundle_pictures
from quad.evaluate.page.output import write_json
from quad.lora.file import find_lora
from quad.quantize.encodings.quality_steps import QualitySteps
from quad.quantize.observe.calibrate import CalibrationSample
from quad.quantize.processes.dealt import Codec, dealt, json_codec, shared
from quad.runtime.adapters.file import bundle_zeros
from quad.runtime.adapters.store import AdapterStore
from quad.runtime.pipeline import QuadPipeline
from quad.zoo.calibration import calibration_samples
from quad.zoo.samples import TASKS
from quad.zoo.synthetic_adapter import SYNTHETIC, write_amplified

ROWS_FILE = "rows.json"
REPEATS = 15
LATER_CALLS = 8  # of all tasks together, that later adapters are measured on
BUNDLE_PREFIX = ".bundle-"
MEANS = ("psnr", "ssim", "lpips_toy", "fd_toy", "effect_gain", "effect_sqnr_db")


@dataclass(frozen=True, kw_only=True)
class AblationRequest:
    """A model, and the rows to measure of it.

    Args:
        adapters: name -> LoRA file or directory.
        out: the directory to write: `rows.json`, `pictures/`, `fp32/`, later `ablate.json` and `report.html`.
        n: held-out samples a task.
        later: name -> LoRA file of later adapters, for the rows that admit some.
        device: that torch computes on, one of `quad.core.device.DEVICES`.
    """

    model: Path
    adapters: Mapping[str, Path]
    out: Path
    rows: Sequence[AblationRow]
    n: int = 16
    target: str = "cpu"
    later: Mapping[str, Path] = field(default_factory=dict)
    device: str = CPU

    @property
    def synthetic_dir(self) -> Path:
        """Directory of the adapter made on purpose from the first one by name, where a row asks for it."""
        return self.out / SYNTHETIC

    def check(self) -> None:
        """Refuse before anything is loaded or written.

        Raises:
            UsageError: `n` is below 1. InputError: no model, or no adapter. UnsupportedError: as `check_world`.
        """
        if self.n < 1:
            raise UsageError(mismatch("--n", "1 or more", self.n, "choose a larger one"))
        check_world(self.model)
        if not self.adapters:
            raise InputError(mismatch("--adapter", "at least one adapter", "none", "write --adapter NAME=PATH"))


def ablate(request: AblationRequest, progress: Progress) -> list[AblationResult]:
    """Measure all rows that are not measured yet.

    Args:
        progress: called with the row that begins and the share of the whole done.

    Returns:
        The rows of `quad ablate --json`, in the order of the plan; those of one build for each adapter only where a task names an adapter.

    Raises:
        QuadError: as `AblationRequest.check`, `build` and the engine raise; rows measured before stay.
    """
    request.check()
    adapters, later_files = ({name: find_lora(path) for name, path in named.items()} for named in (request.adapters, request.later))
    request = replace(request, adapters=adapters, later=later_files)
    if any(row.synthetic for row in request.rows):
        write_amplified(request.adapters[min(request.adapters)], request.synthetic_dir)
    for stale in request.out.glob(f"{BUNDLE_PREFIX}*"):
        shutil.rmtree(stale, ignore_errors=True)  # of a run that was killed
    with fixed_threads():
        return _ablate(request, progress)


def _ablate(request: AblationRequest, progress: Progress) -> list[AblationResult]:
    progress("open", 0.0)
    reference = ReferenceSide(request.model, adapters=request.adapters, n=request.n, cache=request.out / "fp32", device=request.device)
    stored = shared(lambda: _read_rows(request.out / ROWS_FILE), json_codec(dict[str, StoredRow]))
    later = _later(request, reference)
    tasks = _measured_tasks(request, reference)
    rows = [row for row in request.rows if _row_builds(request, row, tasks)]

    def stale(row: AblationRow) -> bool:
        return row.name not in stored or stored[row.name].key != _key(request, reference, _resolved(row, stored))

    def following(left: Sequence[AblationRow]) -> Iterator[AblationRow]:
        for row in left:
            progress(row.name, rows.index(row) / len(rows))
            yield row

    def measured(row: AblationRow) -> _MeasuredRow:
        resolved = _resolved(row, stored)
        result, pictures = _measure(request, reference, resolved, later)
        return _MeasuredRow(StoredRow(**msgspec.structs.asdict(result), key=_key(request, reference, resolved)), pictures)

    # The first row says which adapter is the most sensitive one: rows that ask for its ranges wait for all before them.
    first = next((number for number, row in enumerate(rows) if _needs_ranking(row)), len(rows))
    for some in (rows[:first], rows[first:]):
        for result in dealt(measured, following([row for row in some if stale(row)]), _ROW):
            stored[result.row.name] = result.row
            if is_main():
                keep_pictures(request.out, result.pictures)
                write_json(request.out / ROWS_FILE, msgspec.to_builtins(StoredRows(list(stored.values()))))
    progress("done", 1.0)
    return [msgspec.convert(stored[row.name], AblationResult, from_attributes=True) for row in rows]


@dataclass(frozen=True)
class _MeasuredRow:
    """A row, and the pictures of it that are kept, by file below `pictures`."""

    row: StoredRow
    pictures: Mapping[str, Pictures]


_ROW = Codec[_MeasuredRow](
    lambda measured: (msgspec.to_builtins(measured.row), measured.pictures),
    lambda packed: _MeasuredRow(msgspec.convert(packed[0], StoredRow), packed[1]),
)


def _read_rows(file: Path) -> dict[str, StoredRow]:
    """Rows measured before, by name.

    Raises:
        InputError: the file is not one of ours.
    """
    if not file.is_file():
        return {}
    try:
        return {row.name: row for row in msgspec.json.decode(file.read_bytes(), type=StoredRows).rows}
    except msgspec.MsgspecError as error:
        raise InputError(mismatch(str(file), "rows of an earlier run", "something else", "remove it or choose another -o")) from error


def _key(request: AblationRequest, reference: ReferenceSide, row: AblationRow) -> str:
    """Digest of everything that a row's figures depend on."""
    options = {
        "build": dict(row.build),
        "quality": dict(row.quality),
        "own": row.per_adapter,
        "made": row.synthetic,
        "target": request.target,
        **({"later": adapter_identities(request.later), "strengths": STRENGTHS} if row.later else {}),
    }
    return digest({"model": reference.digest, "adapters": reference.adapter_digests, "n": request.n, "row": options})


def _later(request: AblationRequest, reference: ReferenceSide) -> LaterAdapters:
    """The later adapters, on calls of all tasks that have an adapter."""

    def calls() -> list[LaterCall]:
        own = {task: spec for task, spec in reference.tasks.items() if spec.adapter in request.adapters}
        return [call_of(true.probe) for true in spread(reference.effects(own), LATER_CALLS)]

    return LaterAdapters(request.model, request.later, calls=calls, directory=request.out / "later")


def _needs_ranking(row: AblationRow) -> bool:
    return row.build.get("anchor") == MOST_SENSITIVE


def _resolved(row: AblationRow, measured: Mapping[str, AblationResult]) -> AblationRow:
    """The row with the anchor's name in it, where it asks for the most sensitive adapter."""
    if not _needs_ranking(row):
        return row
    scores: Mapping[str, float] = measured[BASELINE].profile["qss"]
    return replace(row, build={**row.build, "anchor": max(scores, key=lambda name: scores[name])})


def _build_request(
    request: AblationRequest, row: AblationRow, adapters: Mapping[str, Path], output: Path, samples: Sequence[CalibrationSample]
) -> BuildRequest:
    places = BuildRequest(model=request.model, adapters=adapters, output=output, samples=samples)
    plain = replace(places, name="ablation", target=request.target, device=request.device)
    return replace(plain, **{"precision": row.precision, **row.build}, quality=QualitySteps(**row.quality))


@dataclass(frozen=True)
class _RowBuild:
    """One build of a row: which adapters, and the tasks that are measured on it."""

    adapters: Mapping[str, Path]
    tasks: tuple[str, ...]


def _row_builds(request: AblationRequest, row: AblationRow, tasks: Mapping[str, str | None]) -> list[_RowBuild]:
    """One build for all, or one for each adapter; the base alone has no slots to build, so its task is not in a row built per adapter."""
    if not row.per_adapter:
        return [_RowBuild({**request.adapters, SYNTHETIC: request.synthetic_dir} if row.synthetic else request.adapters, tuple(tasks))]
    owners = {name: tuple(task for task, adapter in tasks.items() if adapter == name) for name in request.adapters}
    return [_RowBuild({name: request.adapters[name]}, owned) for name, owned in owners.items() if owned]


def _measured_tasks(request: AblationRequest, reference: ReferenceSide) -> dict[str, str | None]:
    return {task: spec.adapter for task, spec in reference.tasks.items() if spec.adapter is None or spec.adapter in request.adapters}


def _measure(
    request: AblationRequest, reference: ReferenceSide, row: AblationRow, later: LaterAdapters
) -> tuple[AblationResult, dict[str, Pictures]]:
    """Build a row in a directory that is gone afterwards, and measure it; with the pictures that are kept."""
    start = time.perf_counter()
    pictures: dict[str, Pictures] = {}
    tasks = _measured_tasks(request, reference)
    entries: dict[str, AblatedTask] = {}
    builds: list[_BuildFacts] = []
    later_figures: LaterTable = {}
    for single in _row_builds(request, row, tasks):
        samples = calibration_samples(request.model, single.adapters)
        if row.per_adapter:
            samples = tuple(sample for sample in samples if sample.task in single.tasks)
        request.out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=BUNDLE_PREFIX, dir=request.out) as place:
            built = build(_build_request(request, row, single.adapters, Path(place) / "bundle", samples)).to_json()
            pipe = QuadPipeline.from_pretrained(Path(place) / "bundle")
            entries.update(_measure_tasks(request, reference, row.name, pipe, single.tasks, pictures))
            builds.append(_build_facts(built, pipe))
            if row.later:
                later_figures |= later.measure(pipe.bundle, pipe.engine)
    result = AblationResult(
        name=row.name,
        group=row.group,
        a8_fraction=row.a8_fraction,
        lora_bits=row.lora_bits,
        **_means(list(entries.values())),
        psnr_min=min(entry.psnr for entry in entries.values()),
        lora_rom_bytes=sum(single.lora_rom_bytes for single in builds),
        unet_ms=float(np.median([single.unet_ms for single in builds])),
        profile=builds[0].profile if len(builds) == 1 else {"mode": "own"},
        alignment={name: alignment for single in builds for name, alignment in single.alignment.items()},
        tasks={task: entries[task] for task in TASKS if task in entries},
        seconds=time.perf_counter() - start,
        later=later_figures,
    )
    return result, pictures


@dataclass(frozen=True, kw_only=True)
class _BuildFacts:
    """One build of a row: as it was quantized, bytes of all adapters together, and the median ms of one U-Net call."""

    profile: dict[str, Any]
    alignment: dict[str, Any]
    lora_rom_bytes: int
    unet_ms: float


def _build_facts(built: Mapping[str, Any], pipe: QuadPipeline) -> _BuildFacts:
    session = open_unet(pipe.bundle, pipe.engine, pipe.float_type)
    zeros = {name: buffer for name, buffer in bundle_zeros(pipe.bundle).items() if name in session.inputs}
    return _BuildFacts(
        profile=built["profile"],
        alignment=built["alignment"],
        lora_rom_bytes=sum(rom_bytes(pipe.bundle).adapters.values()),
        unet_ms=float(np.median(graph_times(session, zeros, REPEATS))),
    )


def _measure_tasks(
    request: AblationRequest, reference: ReferenceSide, row: str, pipe: QuadPipeline, tasks: Sequence[str], kept: dict[str, Pictures]
) -> dict[str, AblatedTask]:
    """Task -> paired figures of the bundle's pictures, and its adapter's effect.

    Args:
        kept: gets the pictures that are kept.
    """
    specs = {task: pipe.tasks[task] for task in tasks}
    with_adapter = {task: spec for task, spec in specs.items() if spec.adapter is not None}
    effects = network_effects(
        open_unet(pipe.bundle, pipe.engine, pipe.float_type), AdapterStore(pipe.bundle), reference.effects(with_adapter)
    )
    entries = {}
    for task, spec in specs.items():
        use_adapter(pipe, spec.adapter)
        pictures, _ = bundle_pictures(pipe, task, reference.requests(task))
        fp = reference.features(task, spec)
        effect = effects.get(task)
        gain, sqnr_db = (None, None) if effect is None else (effect.gain, effect.capped_db)
        figures = msgspec.structs.replace(pair_figures(fp, extract(pictures, reference.judge)), n=request.n)
        each = [psnr(x, y) for x, y in zip(fp.pictures, pictures, strict=True)]
        entries[task] = AblatedTask(**msgspec.structs.asdict(figures), psnr_each=each, effect_gain=gain, effect_sqnr_db=sqnr_db)
        kept |= {**first_pictures("fp32", task, fp.pictures), **first_pictures(row, task, pictures)}
    return entries


def _means(entries: Sequence[AblatedTask]) -> dict[str, Any]:
    """The row's figures: means over tasks; of the effect, over those with an adapter."""
    means: dict[str, float | None] = {}
    for name in MEANS:
        values = [value for entry in entries if (value := getattr(entry, name)) is not None]
        means[name] = float(np.mean(values)) if values else None
    return means
