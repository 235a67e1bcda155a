"""Two tasks in turn: one graph and two adapters, against two merged graphs that are loaded in turn.

A merged graph is the reference model's U-Net with one adapter added into its weights, built by quad at the same precision: it has no slots
and runs a little faster. Text encoder and VAE stay in memory on both sides; a switch drops one U-Net and loads the other.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from benchmarks.rig.figures import Figure

from quad.core.slots import UNET
from quad.lora.adapter import FloatAdapter
from quad.model.adapters import read_adapter
from quad.model.base.open import open_model
from quad.model.base.toyland_file import WORLD_FILE
from quad.runtime.bundle import Bundle, open_bundle
from quad.runtime.engines.engine import Engine, default_threads, open_engine
from quad.runtime.engines.graph import FairLock, Graph, Slots, open_graphs
from quad.runtime.pipeline import QuadPipeline
from quad.runtime.request import Request
from quad.zoo.reference import reference_dir

TASKS = ("removal", "transform")
STEPS, IMAGES = 4, 20


def compare(bundle: Path, cache: Path, threads: int | None) -> dict[str, Any]:
    """Seconds of `IMAGES` pictures of two tasks in turn, on both sides, and of loading a U-Net."""
    precision = open_bundle(bundle).manifest.precision
    merged = {task: merged_bundle(cache, task, precision) for task in TASKS}
    cores = threads or default_threads()
    ours, theirs = _one_for_all(bundle, cores), _swapped(merged, cores)
    return {"one_for_all": ours, "merged": theirs, "ratio": theirs["seconds"] / ours["seconds"]}


def figures(compared: Mapping[str, Any]) -> list[Figure]:
    """Of `compare`."""
    return [
        Figure(
            name=f"{IMAGES} images of two tasks in turn, merged graphs over ours", value=compared["ratio"], bar=2.0, unit="x", least=True
        )
    ]


def merged_bundle(cache: Path, task: str, precision: str) -> Path:
    """A bundle of the reference model with one adapter in its weights, for one task; built once."""
    place = cache / f"merged-{task}-{precision.replace(':', '_')}"
    if not (place / "bundle.json").is_file():
        model = _merged_model(cache / f"model-{task}", task)
        words = (sys.executable, "-m", "quad", "build", str(model), "-o", str(place), "--precision", precision, "--json")
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    return place


def _merged_model(place: Path, task: str) -> Path:
    toyland = reference_dir()
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(toyland, place, ignore=shutil.ignore_patterns("adapters"))
    base = open_model(toyland)
    adapter = read_adapter(task, toyland / "adapters" / task, base.unet, text_encoder=base.text_encoder)
    _merge(base.unet, adapter)
    base.unet.save_pretrained(place / "unet")
    world = json.loads((place / WORLD_FILE).read_text())
    world["tasks"] = {task: world["tasks"][task] | {"adapter": None}}
    (place / WORLD_FILE).write_text(json.dumps(world))
    return place


def _merge(unet: torch.nn.Module, adapter: FloatAdapter) -> None:
    """W + B A, in place."""
    with torch.no_grad():
        for path, pair in adapter.weights.items():
            weight = unet.get_submodule(path).weight
            product = pair.b.reshape(len(pair.b), -1) @ pair.a.reshape(len(pair.a), -1)
            weight += torch.from_numpy(product.reshape(tuple(weight.shape)))  # type: ignore[operator, arg-type]


def _one_for_all(bundle: Path, threads: int) -> dict[str, Any]:
    pipe = QuadPipeline.from_pretrained(bundle, threads=threads, memory="keep-all")
    start = perf_counter()
    for number in range(IMAGES):
        pipe.finish(pipe.prepare(_request(number, pipe.bundle.manifest.size)))
    seconds = perf_counter() - start
    load = _load_seconds(pipe.bundle, threads)
    return {"seconds": load + seconds, "load_s": load, "image_s": seconds / IMAGES}


def _swapped(merged: Mapping[str, Path], threads: int) -> dict[str, Any]:
    """All but the U-Net in memory; it is loaded with each picture and dropped after it, since the next one is of the other task."""
    pipes = {}
    for task, place in merged.items():
        bundle = open_bundle(place)
        engine = _engine(bundle)
        graphs = open_graphs(bundle, engine, threads, "keep-all")
        load = partial(engine.load, bundle.graph(UNET), threads)
        graphs[UNET] = Graph(load, Slots(UNET, {}), resident=False, budget=FairLock())
        pipes[task] = QuadPipeline(bundle, graphs, engine=engine.name, memory="keep-all")
    start = perf_counter()
    for number in range(IMAGES):
        pipe = pipes[TASKS[number % len(TASKS)]]
        pipe.finish(pipe.prepare(_request(number, pipe.bundle.manifest.size)))
    return {"seconds": perf_counter() - start, "load_s": _load_seconds(next(iter(pipes.values())).bundle, threads)}


def _engine(bundle: Bundle) -> Engine:
    return open_engine("auto", bundle.manifest.engines, bundle.manifest.precision)


def _load_seconds(bundle: Bundle, threads: int) -> float:
    """Of its U-Net, the median of three."""
    engine, times = _engine(bundle), []
    for _ in range(3):
        start = perf_counter()
        engine.load(bundle.graph(UNET), threads)
        times.append(perf_counter() - start)
    return float(np.median(times))


def _request(number: int, size: int) -> Request:
    draw = np.random.default_rng(number)
    picture = draw.integers(0, 256, (size, size, 3), dtype=np.uint8)
    mask = np.zeros((size, size), np.uint8)
    mask[size // 4 : size // 2, size // 4 : size // 2] = 255
    task = TASKS[number % len(TASKS)]
    hole = mask if task == "removal" else None
    return Request(prompt="", task=task, image=picture, mask_image=hole, num_inference_steps=STEPS, seed=number)
