"""`quad ablate`: every row of the plan is built, run and compared with full precision; the paper's tables 4 and 5, and ours.

A row that was measured is kept in `rows.json` with what it was measured from, so that a run that was killed goes on where it stopped.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from quad.build.build import build
from quad.build.request import BuildRequest
from quad.core.digests import digest
from quad.core.errors import InputError, UsageError, mismatch
from quad.evaluate.ablation.full_precision import FloatSide
from quad.evaluate.ablation.pictures import keep_pictures
from quad.evaluate.ablation.plan import BASELINE, MOST_SENSITIVE, Row
from quad.evaluate.bench.bench import graph_times, use_adapter
from quad.evaluate.bench.footprint import rom_bytes
from quad.evaluate.figures.effect import network_effects, open_unet
from quad.evaluate.figures.metrics import psnr
from quad.evaluate.figures.paired import pair_figures, see
from quad.evaluate.figures.quality import check_world
from quad.evaluate.figures.runs import Show, bundle_pictures
from quad.evaluate.page.output import write_json
from quad.lora.file import find_lora
from quad.quantize.encodings.quality_steps import QualitySteps
from quad.quantize.observe.calibrate import CalibrationSample
from quad.runtime.adapters.buffers import zero_buffers
from quad.runtime.adapters.store import AdapterStore
from quad.runtime.pipeline import QuadPipeline
from quad.zoo.calibration import calibration_samples
from quad.zoo.samples import TASKS
from quad.zoo.synthetic_adapter import SYNTHETIC, write_amplified

ROWS_FILE = "rows.json"
REPEATS = 15
BUNDLE_PREFIX = ".bundle-"
MEANS = ("psnr", "ssim", "lpips_toy", "fd_toy", "effect_gain", "effect_sqnr_db")


@dataclass(frozen=True)
class Study:
    """What to ablate.

    Args:
        adapters: name -> LoRA file or directory.
        out: the directory to write: `rows.json`, `pictures/`, `fp32/`, later `ablate.json` and `report.html`.
        n: held-out samples a task.
    """

    model: Path
    adapters: Mapping[str, Path]
    out: Path
    rows: Sequence[Row]
    n: int = 16
    target: str = "cpu"

    @property
    def made(self) -> Path:
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


def ablate(study: Study, show: Show) -> list[dict[str, Any]]:
    """Measure all rows that are not measured yet.

    Args:
        show: called with what is being done and the share of the whole done.

    Returns:
        The rows of `quad ablate --json`, in the order of the plan; those of one build for each adapter only where a task names an adapter.

    Raises:
        QuadError: as `Study.check`, `build` and the engine raise; rows measured before stay.
    """
    study.check()
    study = replace(study, adapters={name: find_lora(path) for name, path in study.adapters.items()})
    if any(row.made for row in study.rows):
        write_amplified(study.adapters[min(study.adapters)], study.made)
    for stale in study.out.glob(f"{BUNDLE_PREFIX}*"):
        shutil.rmtree(stale, ignore_errors=True)  # of a run that was killed
    show("open", 0.0)
    floats = FloatSide(study.model, study.adapters, study.n, study.out / "fp32")
    kept = _read_rows(study.out / ROWS_FILE)
    found: dict[str, dict[str, Any]] = {}
    tasks = _measured_tasks(study, floats)
    rows = [row for row in study.rows if _parts(study, row, tasks)]
    for i, row in enumerate(rows):
        show(row.name, i / len(rows))
        row = _resolved(row, found)
        key = _key(study, floats, row)
        if kept.get(row.name, {}).get("key") != key:
            kept[row.name] = {**_measure(study, floats, row), "key": key}
            write_json(study.out / ROWS_FILE, {"rows": list(kept.values())})
        found[row.name] = kept[row.name]
    show("done", 1.0)
    return [{name: value for name, value in entry.items() if name != "key"} for entry in found.values()]


def _read_rows(file: Path) -> dict[str, dict[str, Any]]:
    """Rows measured before, by name.

    Raises:
        InputError: the file is not one of ours.
    """
    if not file.is_file():
        return {}
    try:
        return {entry["name"]: entry for entry in json.loads(file.read_bytes())["rows"]}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(mismatch(str(file), "rows of an earlier run", "something else", "remove it or choose another -o")) from error


def _key(study: Study, floats: FloatSide, row: Row) -> str:
    """What a row's figures depend on."""
    options = {"build": dict(row.build), "quality": dict(row.quality), "own": row.own, "made": row.made, "target": study.target}
    return digest({"model": floats.digest, "adapters": floats.adapter_digests, "n": study.n, "row": options})


def _resolved(row: Row, found: Mapping[str, Mapping[str, Any]]) -> Row:
    """The row with the anchor's name in it, where it asks for the most sensitive adapter."""
    if row.build.get("anchor") != MOST_SENSITIVE:
        return row
    scores: Mapping[str, float] = found[BASELINE]["profile"]["qss"]
    return replace(row, build={**row.build, "anchor": max(scores, key=lambda name: scores[name])})


def _request(study: Study, row: Row, adapters: Mapping[str, Path], output: Path, samples: Sequence[CalibrationSample]) -> BuildRequest:
    request = BuildRequest(study.model, adapters, output, samples, name="ablation", target=study.target)
    return replace(request, **row.build, quality=QualitySteps(**row.quality))


@dataclass(frozen=True)
class _Part:
    """One build of a row: which adapters, and the tasks that are measured on it."""

    adapters: Mapping[str, Path]
    tasks: tuple[str, ...]


def _parts(study: Study, row: Row, tasks: Mapping[str, str | None]) -> list[_Part]:
    """One build for all, or one for each adapter; the base alone has no slots to build, so its task is not in an `own` row."""
    if not row.own:
        return [_Part({**study.adapters, SYNTHETIC: study.made} if row.made else study.adapters, tuple(tasks))]
    owners = {name: tuple(task for task, adapter in tasks.items() if adapter == name) for name in study.adapters}
    return [_Part({name: study.adapters[name]}, owned) for name, owned in owners.items() if owned]


def _measured_tasks(study: Study, floats: FloatSide) -> dict[str, str | None]:
    return {task: spec.adapter for task, spec in floats.tasks.items() if spec.adapter is None or spec.adapter in study.adapters}


def _measure(study: Study, floats: FloatSide, row: Row) -> dict[str, Any]:
    """Build a row in a directory that is gone afterwards, and measure it."""
    start = time.perf_counter()
    tasks = _measured_tasks(study, floats)
    entries: dict[str, dict[str, Any]] = {}
    facts: list[dict[str, Any]] = []
    for part in _parts(study, row, tasks):
        samples = calibration_samples(study.model, part.adapters)
        if row.own:
            samples = tuple(sample for sample in samples if sample.task in part.tasks)
        study.out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=BUNDLE_PREFIX, dir=study.out) as place:
            built = build(_request(study, row, part.adapters, Path(place) / "bundle", samples)).to_json()
            pipe = QuadPipeline.from_pretrained(Path(place) / "bundle")
            entries.update(_measure_tasks(study, floats, row, pipe, part.tasks))
            facts.append({"profile": built["profile"], "alignment": built["alignment"], **_device_facts(pipe)})
    return {
        "name": row.name,
        "group": row.group,
        "a8_fraction": row.a8_fraction,
        "lora_bits": row.lora_bits,
        **_means(list(entries.values())),
        "psnr_min": min(entry["psnr"] for entry in entries.values()),
        "lora_rom_bytes": sum(fact["lora_rom_bytes"] for fact in facts),
        "unet_ms": float(np.median([fact["unet_ms"] for fact in facts])),
        "profile": facts[0]["profile"] if len(facts) == 1 else {"mode": "own"},
        "alignment": {name: found for fact in facts for name, found in fact["alignment"].items()},
        "tasks": {task: entries[task] for task in TASKS if task in entries},
        "seconds": time.perf_counter() - start,
    }


def _device_facts(pipe: QuadPipeline) -> dict[str, Any]:
    """Bytes of all adapters together, and the median ms of one U-Net call."""
    session = open_unet(pipe.bundle, pipe.engine)
    held = {name: buffer for name, buffer in zero_buffers(pipe.bundle.slots).items() if name in session.inputs}
    times = graph_times(session, held, REPEATS)
    return {"lora_rom_bytes": sum(rom_bytes(pipe.bundle)["adapters"].values()), "unet_ms": float(np.median(times))}


def _measure_tasks(study: Study, floats: FloatSide, row: Row, pipe: QuadPipeline, tasks: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Task -> paired figures of the bundle's pictures, and its adapter's effect."""
    specs = {task: pipe.tasks[task] for task in tasks}
    with_adapter = {task: spec for task, spec in specs.items() if spec.adapter is not None}
    effects = network_effects(open_unet(pipe.bundle, pipe.engine), AdapterStore(pipe.bundle), floats.effects(with_adapter))
    entries = {}
    for task, spec in specs.items():
        use_adapter(pipe, spec.adapter)
        pictures, _ = bundle_pictures(pipe, task, floats.jobs(task))
        fp = floats.seen(task, spec)
        effect = effects.get(task)
        own = effect.to_json() if effect is not None else {"gain": None, "sqnr_db": None}
        figures = pair_figures(fp, see(pictures, floats.judge))
        each = [psnr(x, y) for x, y in zip(fp.pictures, pictures, strict=True)]
        entries[task] = {"n": study.n, **figures, "psnr_each": each, "effect_gain": own["gain"], "effect_sqnr_db": own["sqnr_db"]}
        keep_pictures(study.out, "fp32", task, fp.pictures)
        keep_pictures(study.out, row.name, task, pictures)
    return entries


def _means(entries: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """The row's figures: means over tasks; of the effect, over those with an adapter."""
    found: dict[str, float | None] = {}
    for name in MEANS:
        values = [entry[name] for entry in entries if entry[name] is not None]
        found[name] = float(np.mean(values)) if values else None
    return found
