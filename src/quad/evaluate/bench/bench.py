"""KPIs of a bundle on this machine: milliseconds, switch time, ROM and RAM. The runtime only, no torch.

`python -m quad.evaluate.bench.bench BUNDLE` prints one JSON object; run in its own process, its peak RAM is the device's.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import msgspec
import numpy as np
import typer
from numpy.typing import NDArray

from quad.core.errors import QuadError, UsageError, mismatch
from quad.core.float_type import F32
from quad.core.manifest import TaskSpec
from quad.core.memory import peak_ram_bytes, reset_peak
from quad.core.progress import Progress, silent
from quad.core.slots import UNET
from quad.evaluate.bench.footprint import rom_bytes
from quad.evaluate.bench.machine import machine
from quad.evaluate.bench.results import BenchResult, BundleFacts, CallTimes, StageBegins, Switching, TaskTimes
from quad.evaluate.bench.switching import bench_resident, bench_switch, flatness
from quad.evaluate.bench.timing import median, median_p95, milliseconds
from quad.runtime.adapters.file import bundle_zeros
from quad.runtime.bundle import COMPONENTS, Bundle
from quad.runtime.engines.engine import Session, default_threads, open_engine
from quad.runtime.engines.float_types import denoiser_engine
from quad.runtime.pipeline import QuadPipeline

Buffers = dict[str, NDArray[Any]]
# Shares of the whole that the bar gives to what comes before and after the tasks.
_SWITCH, _TASKS, _COMPONENTS = 0.15, 0.2, 0.8


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """The bundle to measure, and how.

    Args:
        path: the bundle directory.
        float_type: of the U-Net's floats, see `QuadPipeline`.
        threads: CPU threads, None for as many as the process may use.
        repeats: timed calls of each graph; whole pictures are timed a quarter as often, at least three times.
        tasks: whose whole pictures are timed, empty for all.
    """

    path: Path
    engine: str = "auto"
    float_type: str = "auto"
    threads: int | None = None
    repeats: int = 15
    tasks: tuple[str, ...] = ()


def _feed(session: Session, bound: Buffers) -> Buffers:
    """Inputs of the right shape for a graph; dynamic axes are 1."""
    feed: Buffers = {}
    for name, shape in session.inputs.items():
        if name not in bound:
            dtype = np.int64 if name == "input_ids" else np.float32
            feed[name] = np.ones([n or 1 for n in shape], dtype)
    return feed


def graph_times(session: Session, buffers: Buffers, repeats: int) -> list[float]:
    """Ms of single calls of one graph with these buffers bound, on made-up inputs."""
    session.bind(buffers)
    return milliseconds(partial(session.run, _feed(session, buffers)), repeats)


def bench_components(bundle: Bundle, engine: str, threads: int, repeats: int, float_type: str = F32) -> dict[str, CallTimes]:
    """One call of each graph, by component; the U-Net's is one step without guidance."""
    opened = open_engine(engine, bundle.manifest.engines, bundle.manifest.precision)
    denoiser = denoiser_engine(opened, float_type, bundle.manifest).engine
    times = {}
    for component in COMPONENTS:
        with bundle.graph_to_load(component) as file:
            session = (denoiser if component == UNET else opened).load(file, threads)
        zeros = {name: buffer for name, buffer in bundle_zeros(bundle).items() if name in session.inputs}
        times[component] = median_p95(graph_times(session, zeros, repeats))
    return times


def use_adapter(pipe: QuadPipeline, adapter: str | None) -> None:
    """Bind one adapter, or the base."""
    if adapter is None:
        pipe.disable_lora()
    else:
        pipe.set_adapters(adapter)


def bench_task(pipe: QuadPipeline, task: str, spec: TaskSpec, repeats: int) -> TaskTimes:
    """Whole pictures of one task on a made-up input, the task's adapter already bound."""
    width, height = pipe.bundle.manifest.picture_size
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    mask = np.zeros((height, width), np.uint8)
    mask[height // 4 : height // 2, width // 4 : width // 2] = 255
    use_adapter(pipe, spec.adapter)
    image, hole = (None if not spec.reads_picture else picture), (mask if spec.mask == "input" else None)
    run = partial(pipe, "", task=task, image=image, mask_image=hole)
    run()
    reset_peak()
    runs = [run().timings_ms for _ in range(repeats)]
    part = {name: median([times[name] for times in runs]) for name in runs[0]}
    return TaskTimes(
        sampler=spec.sampler.kind,
        steps=spec.sampler.steps,
        guidance=spec.guidance,
        adapter=spec.adapter,
        text_encoder_ms=part["text_encoder"],
        vae_encoder_ms=part.get("vae_encoder"),
        unet_step_ms=part["unet"] / spec.sampler.steps,
        vae_decoder_ms=part["vae_decoder"],
        end_to_end_ms=part["total"],
        peak_ram_bytes=peak_ram_bytes(),
    )


def _requested(pipe: QuadPipeline, tasks: tuple[str, ...]) -> dict[str, TaskSpec]:
    """Raises:
    UsageError: the bundle has no such task.
    """
    unknown = [task for task in tasks if task not in pipe.tasks]
    if unknown:
        raise UsageError(mismatch("--task", f"one of {', '.join(pipe.tasks)}", repr(unknown[0]), "choose one of these"))
    return {task: spec for task, spec in pipe.tasks.items() if task in tasks or not tasks}


def _open(options: BenchOptions) -> tuple[QuadPipeline, float]:
    """The pipeline, and the ms it took to open: files checked, graphs loaded."""
    start = perf_counter()
    pipe = QuadPipeline.from_pretrained(options.path, engine=options.engine, threads=options.threads, float_type=options.float_type)
    return pipe, (perf_counter() - start) * 1e3


def bench(options: BenchOptions, progress: Progress = silent) -> BenchResult:
    """Measure a bundle on this machine; `memory` is left out.

    Args:
        progress: called with the stage that begins and the share done.

    Raises:
        UsageError: the bundle has no such task.
        InputError: no bundle there. VerificationError: it was changed. CompatibilityError, BackendError: that engine cannot run it.
    """
    progress("open", 0.0)
    pipe, load_ms = _open(options)
    requested, bundle = _requested(pipe, options.tasks), pipe.bundle
    progress("switch", _SWITCH)
    switch = bench_switch(pipe)
    opening_peak, tasks = peak_ram_bytes(), {}
    for i, (task, spec) in enumerate(requested.items()):
        progress(task, _TASKS + (_COMPONENTS - _TASKS) * i / len(requested))
        tasks[task] = bench_task(pipe, task, spec, max(3, options.repeats // 4))
    # Read before adapters are copied and the graphs opened a second time: a device holds them once.
    peak = max([opening_peak, *(entry.peak_ram_bytes for entry in tasks.values())])
    progress("resident adapters", _COMPONENTS)
    resident = bench_resident(pipe)
    threads = options.threads or default_threads()
    engine, float_type, manifest = pipe.engine, pipe.float_type, bundle.manifest
    del pipe
    progress("components", (1 + _COMPONENTS) / 2)
    return BenchResult(
        engine=engine,
        threads=threads,
        machine=machine(engine, threads),
        bundle=BundleFacts(
            name=manifest.name,
            target=manifest.target,
            precision=manifest.precision,
            size=manifest.size,
            picture_size=str(manifest.picture_size),
        ),
        load_ms=load_ms,
        components=bench_components(bundle, engine, threads, options.repeats, float_type),
        end_to_end_ms={task: entry.end_to_end_ms for task, entry in tasks.items()},
        tasks=tasks,
        switch=Switching(**msgspec.structs.asdict(switch), resident=resident, flatness=flatness(resident)),
        rom_bytes=rom_bytes(bundle),
        peak_ram_bytes=peak,
    )


def _print_stage(stage: str, share: float) -> None:
    print(json.dumps(msgspec.to_builtins(StageBegins(stage, share))), file=sys.stderr, flush=True)


def main(  # noqa: PLR0913 - options of a command
    bundle: Annotated[Path, typer.Argument(help="bundle directory")],
    engine: Annotated[str, typer.Option(help="auto, or an engine's name")] = "auto",
    float_type: Annotated[str, typer.Option("--float", help="auto, f32 or bf16")] = "auto",
    threads: Annotated[int, typer.Option(help="CPU threads, 0 for all cores")] = 0,
    repeats: Annotated[int, typer.Option(help="timed calls of each graph")] = 15,
    task: Annotated[list[str] | None, typer.Option(help="only this task's pictures; repeat it")] = None,
    progress: Annotated[bool, typer.Option(help="a JSON line on stderr for each stage that begins")] = False,
) -> None:
    """Print the KPIs of a bundle as one JSON object."""
    options = BenchOptions(
        path=bundle, engine=engine, float_type=float_type, threads=threads or None, repeats=repeats, tasks=tuple(task or ())
    )
    measured = bench(options, _print_stage if progress else silent)
    print(json.dumps(msgspec.to_builtins(measured), allow_nan=False))


if __name__ == "__main__":
    try:
        typer.run(main)
    except QuadError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
