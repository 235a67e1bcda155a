"""A step of Stable Diffusion 1.5's shape on three engines in turns: LiteRT's `dynamic-w8` beside the integer kernels of the others.

    python -m benchmarks.sd15_litert [--build-only] [--latent 32|64] [--repeats N] [--threads 2] [--cache DIR] [--json FILE]

Weights are random: times and sizes are those of the real model, pictures are none. Each side is a process of its own with the graph of its
own target; they take turns (A B C D, D C B A, ...). OpenVINO runs with floats of 32 bits, and with the bf16 that it takes by itself on a
processor that has it. Where other work runs beside, `--threads 1` and CPU time: a thread that waits for another one spins.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from time import sleep
from typing import Any

import msgspec
from benchmarks.rig.figures import paired_ratio
from benchmarks.rig.graphs import SHARED, TARGETS, Shape, build_shared, graph_file
from benchmarks.rig.litert_graph import tflite_file, write_litert
from benchmarks.rig.report import command_line, write_report
from benchmarks.rig.sides import Side

from quad.core.precision import DYNAMIC
from quad.evaluate.bench.machine import machine
from quad.evaluate.bench.timing import median_p95

RANK, PRECISION, LORA_BITS = 16, "mixed:80", 16
ORT, OPENVINO, OPENVINO_BF16, LITERT = "ort mixed:80", "openvino mixed:80, f32", "openvino mixed:80, bf16", "litert dynamic-w8"
REST_SECONDS, WARM_UP = 0.05, 2
BUILT_FILE = "built-litert.json"


def main() -> int:
    """Build what is missing, take turns, print."""
    options = _options()
    cache = options.cache / f"{options.latent}-{RANK}-{PRECISION.replace(':', '_')}-{LORA_BITS}"
    built = _built(cache, options.latent)
    if options.build_only:
        return 0
    measured = _measure(cache, options)
    engines = (*TARGETS, "litert")
    write_report(options.json, {"machine": {engine: msgspec.to_builtins(machine(engine, options.threads)) for engine in engines},
                                "latent": options.latent, "built": built, "sides": measured})  # fmt: skip
    for name, side in measured.items():
        print(f"{name:34} {side['median_ms']:6.0f} ms, least {side['least_ms']:.0f}, {side['over_ort']:.2f} of ort's; CPU "
              f"{side['cpu_ms']:.0f} ms, least {side['least_cpu_ms']:.0f}, {side['cpu_over_ort']:.2f} of ort's; "
              f"{side['peak_rss_bytes'] / 1e9:.2f} GB; switch {side['switch_ms']:.2f} ms; A B A {side['a_b_a']}")  # fmt: skip
    return 0


def _options() -> argparse.Namespace:
    parser = command_line(__doc__)
    parser.add_argument("--latent", type=int, choices=(32, 64), default=32, help="side of the latent; 32 is a picture of 256 pixels")
    parser.add_argument("--repeats", type=int, default=15, help="turns of each side")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache", type=Path, default=Path("out/sd15"), help="where graphs are kept, with those of benchmarks.sd15")
    parser.add_argument("--build-only", action="store_true", help="write the graphs and end")
    return parser.parse_args()


def _tell(line: str) -> None:
    print(f"sd15_litert: {line}", file=sys.stderr, flush=True)


def _built(cache: Path, latent: int) -> dict[str, Any]:
    """Figures of LiteRT's file, now or when the cache was filled; graphs are made in processes whose memory goes with them."""
    cache.mkdir(parents=True, exist_ok=True)
    shape = Shape(latent=latent, rank=RANK, precision=PRECISION, lora_bits=LORA_BITS)
    if not all(graph_file(cache, kind, SHARED).is_file() for kind in TARGETS.values()):
        _apart(build_shared, cache, shape, tuple(TARGETS), _tell)
    file = cache / BUILT_FILE
    if not file.is_file() or not tflite_file(cache).is_file():
        _tell("litert: build")
        file.write_text(json.dumps(_apart(write_litert, cache, latent, RANK)))
    built: dict[str, Any] = json.loads(file.read_text())
    return built


def _apart(work: Any, *arguments: Any) -> Any:
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)


def _measure(cache: Path, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Side -> its times, memory and switch; all are loaded at once."""
    graphs = {ORT: ("ort", "cpu", ""), OPENVINO: ("openvino", "openvino", ""), OPENVINO_BF16: ("openvino", "openvino", "bf16")}
    with ExitStack() as stack:

        def side(name: str, engine: str, file: Path, precision: str, hint: str = "") -> Side:
            _tell(f"load {name}")
            return stack.enter_context(Side(name, engine=engine, precision=precision, file=file, threads=options.threads, float_hint=hint))

        sides = [side(name, engine, graph_file(cache, kind, SHARED), PRECISION, hint) for name, (engine, kind, hint) in graphs.items()]
        sides.append(side(LITERT, "litert", tflite_file(cache), DYNAMIC))
        times, cpu_times = _take_turns(sides, options.repeats)
        return {each.name: _figures(each, times, cpu_times) for each in sides}


def _figures(side: Side, times: dict[str, list[float]], cpu_times: dict[str, list[float]]) -> dict[str, Any]:
    turns, cpu = times[side.name], cpu_times[side.name]
    return {
        **msgspec.to_builtins(median_p95(turns)),
        "least_ms": min(turns),
        "turns_ms": turns,
        "over_ort": paired_ratio(turns, times[ORT]),
        "cpu_ms": median_p95(cpu).median_ms,
        "least_cpu_ms": min(cpu),
        "cpu_over_ort": paired_ratio(cpu, cpu_times[ORT]),
        "load_seconds": side.loaded,
        "peak_rss_bytes": side.ask("rss"),
        "a_b_a": all(side.ask("trace").values()),
        "switch_ms": side.ask("switch", (2,))[2],
    }


def _take_turns(sides: list[Side], repeats: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Wall and CPU milliseconds of every side, turn by turn."""
    times: dict[str, list[float]] = {side.name: [] for side in sides}
    cpu_times: dict[str, list[float]] = {side.name: [] for side in sides}
    for turn in range(WARM_UP + repeats):
        for side in sides if turn % 2 else reversed(sides):
            sleep(REST_SECONDS)  # threads of the side before go to sleep
            ms, cpu_ms = side.ask("timed_step")
            if turn >= WARM_UP:
                times[side.name].append(ms)
                cpu_times[side.name].append(cpu_ms)
    return times, cpu_times


if __name__ == "__main__":
    sys.exit(main())
