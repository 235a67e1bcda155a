"""One row of the ablation: built, run, and compared with full precision."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from quad.build.build import build
from quad.evaluate.ablation.later import LaterAdapters
from quad.evaluate.ablation.pictures import first_pictures
from quad.evaluate.ablation.plan import AblationRow
from quad.evaluate.ablation.reference_side import ReferenceSide
from quad.evaluate.ablation.request import AblationRequest
from quad.evaluate.ablation.results import AblatedTask, AblationResult, LaterTable
from quad.evaluate.ablation.row_builds import build_request, measured_tasks, row_builds
from quad.evaluate.bench.bench import graph_times, use_adapter
from quad.evaluate.bench.footprint import rom_bytes
from quad.evaluate.figures.effect import network_effects, open_unet
from quad.evaluate.figures.metrics import psnr
from quad.evaluate.figures.paired import extract, pair_figures
from quad.evaluate.figures.runs import Pictures, bundle_pictures
from quad.runtime.adapters.file import bundle_zeros
from quad.runtime.adapters.store import AdapterStore
from quad.runtime.pipeline import QuadPipeline
from quad.zoo.calibration import calibration_samples
from quad.zoo.samples import TASKS

REPEATS = 15
BUNDLE_PREFIX = ".bundle-"
MEANS = ("psnr", "ssim", "lpips_toy", "fd_toy", "effect_gain", "effect_sqnr_db")


def measure_row(
    request: AblationRequest, reference: ReferenceSide, row: AblationRow, later: LaterAdapters
) -> tuple[AblationResult, dict[str, Pictures]]:
    """Build a row in a directory that is gone afterwards, and measure it; with the pictures that are kept."""
    start = time.perf_counter()
    pictures: dict[str, Pictures] = {}
    tasks = measured_tasks(request, reference)
    entries: dict[str, AblatedTask] = {}
    builds: list[_BuildFacts] = []
    later_figures: LaterTable = {}
    for single in row_builds(request, row, tasks):
        samples = calibration_samples(request.model, single.adapters)
        if row.per_adapter:
            samples = tuple(sample for sample in samples if sample.task in single.tasks)
        request.out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=BUNDLE_PREFIX, dir=request.out) as place:
            built = build(build_request(request, row, single.adapters, Path(place) / "bundle", samples)).to_json()
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
