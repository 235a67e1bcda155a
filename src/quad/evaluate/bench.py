"""KPIs of a bundle on this machine: milliseconds, switch time, ROM and RAM. The runtime only, no torch.

`python -m quad.evaluate.bench BUNDLE` prints one JSON object; run in its own process, its peak RAM is the device's.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from quad.runtime.adapters import zero_buffers
from quad.runtime.bundle import COMPONENTS, Bundle
from quad.runtime.engine import Session, default_threads, open_engine
from quad.runtime.pipeline import QuadPipeline

WARM_UP = 2
Buffers = dict[str, NDArray[Any]]


def milliseconds(run: Callable[[], object], repeats: int, warm_up: int = WARM_UP) -> list[float]:
    """Wall-clock of each of `repeats` calls, ms, after `warm_up` that do not count."""
    times = []
    for i in range(warm_up + repeats):
        start = perf_counter()
        run()
        if i >= warm_up:
            times.append((perf_counter() - start) * 1e3)
    return times


def _median(times: list[float]) -> float:
    return float(np.median(np.asarray(times)))


def median_p95(times: list[float]) -> dict[str, float]:
    """`median_ms` and `p95_ms` of some times."""
    return {"median_ms": _median(times), "p95_ms": float(np.quantile(np.asarray(times), 0.95))}


def _feed(session: Session, held: Buffers) -> Buffers:
    """Inputs of the right shape for a graph; dynamic axes are 1."""
    feed: Buffers = {}
    for name, shape in session.inputs.items():
        if name not in held:
            dtype = np.int64 if name == "input_ids" else np.float32
            feed[name] = np.ones([n or 1 for n in shape], dtype)
    return feed


def graph_times(session: Session, held: Buffers, repeats: int) -> list[float]:
    """Ms of single calls of one graph with `held` bound, on made-up inputs."""
    session.bind(held)
    return milliseconds(partial(session.run, _feed(session, held)), repeats)


def bench_components(bundle: Bundle, engine: str, threads: int, repeats: int) -> dict[str, dict[str, float]]:
    """One call of each graph, by component; the U-Net's is one step without guidance."""
    opened = open_engine(engine, bundle.manifest.engines, bundle.manifest.precision)
    found = {}
    for component in COMPONENTS:
        session = opened.load(bundle.graph(component), threads)
        held = {name: buffer for name, buffer in zero_buffers(bundle.slots).items() if name in session.inputs}
        found[component] = median_p95(graph_times(session, held, repeats))
    return found


def use_adapter(pipe: QuadPipeline, adapter: str | None) -> None:
    """Bind one adapter, or the base."""
    if adapter is None:
        pipe.disable_lora()
    else:
        pipe.set_adapters(adapter)


def bench_tasks(pipe: QuadPipeline, repeats: int) -> dict[str, float]:
    """Median ms of one whole picture by task, on a made-up input, its adapter already bound."""
    size = pipe.bundle.manifest.size
    picture = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    mask = np.zeros((size, size), np.uint8)
    mask[size // 4 : size // 2, size // 4 : size // 2] = 255
    found = {}
    for task, spec in pipe.tasks.items():
        image = None if spec.condition == "none" else picture
        hole = mask if spec.mask == "input" else None
        use_adapter(pipe, spec.adapter)
        run = partial(pipe, "", task=task, image=image, mask_image=hole)
        found[task] = _median(milliseconds(run, repeats, 1))
    return found


def bench_switch(pipe: QuadPipeline, rounds: int = 10) -> dict[str, float]:
    """Ms to bind another adapter: cold reads and checks its file (page cache warm), warm finds it in memory. Medians over adapters.

    `pipe` is as opened: its first touch of each adapter is the cold switch.
    """
    if not pipe.adapters:
        return {"warm_ms": 0.0, "cold_ms": 0.0, "warm_p95_ms": 0.0}

    def switch(name: str) -> float:
        start = perf_counter()
        pipe.set_adapters(name)
        return (perf_counter() - start) * 1e3

    cold = [switch(name) for name in pipe.adapters]
    warm = [switch(name) for _ in range(rounds) for name in pipe.adapters]
    spread = median_p95(warm)
    return {"warm_ms": spread["median_ms"], "cold_ms": _median(cold), "warm_p95_ms": spread["p95_ms"]}


def _adapter_bytes(bundle: Bundle, name: str) -> int:
    entries = bundle.manifest.files
    return sum(entry.size_bytes for file, entry in entries.items() if file.startswith(f"adapters/{name}/"))


def rom_bytes(bundle: Bundle) -> dict[str, Any]:
    """Bytes on disk: what all tasks share, and each adapter."""
    shared = sum(entry.size_bytes for file, entry in bundle.manifest.files.items() if not file.startswith("adapters/"))
    return {"shared": shared, "adapters": {name: _adapter_bytes(bundle, name) for name in bundle.manifest.adapters}}


def peak_ram_bytes() -> int:
    """Largest resident size of this process so far, bytes.

    Linux's getrusage carries the parent's peak over into a started process (execve folds it in), so VmHWM is read there.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def bench(path: Path, engine: str = "auto", threads: int | None = None, repeats: int = 15) -> dict[str, Any]:
    """The object of `quad bench --json` (interfaces.md).

    Raises:
        InputError: no bundle at `path`. VerificationError: it was changed. BackendError: no engine can run it.
    """
    pipe = QuadPipeline.from_pretrained(path, engine=engine, threads=threads)
    switch = bench_switch(pipe)
    end_to_end = bench_tasks(pipe, max(3, repeats // 4))
    # Read before the graphs are opened a second time for their own timing: a device holds them once.
    peak = peak_ram_bytes()
    bundle = pipe.bundle
    return {
        "engine": pipe.engine,
        "threads": threads or default_threads(),
        "components": bench_components(bundle, pipe.engine, threads or default_threads(), repeats),
        "end_to_end_ms": end_to_end,
        "switch": switch,
        "rom_bytes": rom_bytes(bundle),
        "peak_ram_bytes": peak,
    }


def main(
    bundle: Annotated[Path, typer.Argument(help="bundle directory")],
    engine: Annotated[str, typer.Option(help="auto, or an engine's name")] = "auto",
    threads: Annotated[int, typer.Option(help="CPU threads, 0 for all cores")] = 0,
    repeats: Annotated[int, typer.Option(help="timed calls of each graph")] = 15,
) -> None:
    """Print the KPIs of a bundle as one JSON object."""
    print(json.dumps(bench(bundle, engine, threads or None, repeats)))


if __name__ == "__main__":
    typer.run(main)
