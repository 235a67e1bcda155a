"""The cost of a memory plan: one picture that uses every graph, and another one after it. The runtime only, no torch.

`python -m quad.evaluate.bench.memory_plans BUNDLE --memory PLAN` prints one JSON object; a plan's peak is only its own in a process of its
own, which is why this reads its arguments without the libraries of the command line: they take up to 11 MB.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import msgspec
import numpy as np

from quad.core.errors import QuadError
from quad.core.manifest import TaskSpec
from quad.core.memory import peak_ram_bytes
from quad.evaluate.bench.results import MemoryPlanCosts
from quad.runtime.pipeline import QuadPipeline

MOST_STEPS = 2  # steps change no peak


def bench_memory(path: Path, memory: str, engine: str, threads: int | None, float_type: str = "auto") -> MemoryPlanCosts:
    """Open the bundle with a plan and make two pictures; the peak is this whole process's."""
    start = perf_counter()
    pipe = QuadPipeline.from_pretrained(path, engine, threads, verify=False, memory=memory, float_type=float_type)
    open_ms = (perf_counter() - start) * 1e3
    task, arguments = _call(pipe)
    first, following = (pipe(**arguments).timings_ms["total"] for _ in range(2))
    return MemoryPlanCosts(peak_ram_bytes=peak_ram_bytes(), open_ms=open_ms, first_ms=first, next_ms=following, task=task)


def _call(pipe: QuadPipeline) -> tuple[str, dict[str, Any]]:
    """A task that reads a picture, where there is one, and what to call it with."""
    task, spec = max(pipe.tasks.items(), key=lambda item: _rank(item[1]))
    grid = pipe.bundle.manifest.picture_size.grid
    arguments: dict[str, Any] = {"task": task}
    if spec.reads_picture:
        arguments["image"] = np.random.default_rng(0).integers(0, 256, (*grid, 3), dtype=np.uint8)
    if spec.mask == "input":
        arguments["mask_image"] = np.full(grid, 255, np.uint8)
    if spec.sampler.kind != "olss":
        arguments["num_inference_steps"] = min(MOST_STEPS, spec.sampler.steps)
    return task, arguments


def _rank(spec: TaskSpec) -> tuple[bool, bool]:
    return spec.reads_picture, spec.adapter is not None


def main() -> None:
    """Print what a memory plan takes as one JSON object."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("bundle", type=Path, help="bundle directory")
    parser.add_argument("--memory", required=True, help="the plan")
    parser.add_argument("--engine", default="auto", help="auto, or an engine's name")
    parser.add_argument("--float", dest="float_type", default="auto", help="auto, f32 or bf16")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads, 0 for all cores")
    options = parser.parse_args()
    costs = bench_memory(options.bundle, options.memory, options.engine, options.threads or None, options.float_type)
    print(json.dumps(msgspec.to_builtins(costs), allow_nan=False))


if __name__ == "__main__":
    try:
        main()
    except QuadError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
