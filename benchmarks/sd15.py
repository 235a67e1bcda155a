"""The cost of one graph for all adapters, and the gain of 8 bits, on a U-Net of Stable Diffusion 1.5's shape.

    python -m benchmarks.sd15 [--latent 32|64] [--engines ort,openvino] [--adapters 1,2,10,100] [--repeats N] [--json FILE]

Weights are random: times and sizes are those of the real model, pictures are none. The four sides of an engine take turns (A B C D,
D C B A, ...), each in a process of its own, and ratios are medians over turns, so that a machine whose speed drifts does not decide.
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
from benchmarks.rig.figures import (
    FLOAT_MERGED,
    FLOAT_SHARED,
    INT_MERGED,
    INT_SHARED,
    Figure,
    engine_figures,
    placement_figures,
    rom_figures,
    rom_rows,
)
from benchmarks.rig.graphs import MERGED, SHARED, SLOTS_FILE, TARGETS, Shape, build_graphs, graph_file, random_unet
from benchmarks.rig.report import command_line, print_figures, write_report
from benchmarks.rig.sides import Side

from quad.core.slots import SlotTable
from quad.evaluate.bench.machine import machine
from quad.evaluate.bench.timing import median_p95

REST_SECONDS, WARM_UP = 0.05, 2
BUILT_FILE = "built.json"


def main() -> int:
    """Measure all engines and print times, memory and bars."""
    options = _options()
    shape = Shape(latent=options.latent, rank=options.rank, precision=options.precision, lora_bits=options.lora_bits)
    cache = options.cache / f"{shape.latent}-{shape.rank}-{shape.precision.replace(':', '_')}-{shape.lora_bits}"
    built = _built(cache, shape, options.engines)
    engines = {engine: _engine(engine, cache, options) for engine in options.engines}
    rows = _rom(cache, shape, options.engines[0], built["parameters"])
    figures = [figure for engine in engines.values() for figure in engine.pop("figures")] + placement_figures(built) + rom_figures(rows)
    report = {
        "machine": {engine: msgspec.to_builtins(machine(engine, options.threads)) for engine in options.engines},
        "shape": msgspec.to_builtins(shape), "built": built, "engines": engines, "rom": rows,
    }  # fmt: skip
    write_report(options.json, report, figures)
    _print(report, figures)
    return 0


def _options() -> argparse.Namespace:
    def numbers(text: str) -> tuple[int, ...]:
        return tuple(int(part) for part in text.split(","))

    def names(text: str) -> tuple[str, ...]:
        return tuple(part for part in text.split(",") if part in TARGETS or parser.error(f"engine: {' | '.join(TARGETS)}, found {part}"))

    parser = command_line(__doc__)
    parser.add_argument("--latent", type=int, choices=(32, 64), default=32, help="side of the latent; 32 is a picture of 256 pixels")
    parser.add_argument("--engines", type=names, default=tuple(TARGETS), help="of ort,openvino")
    parser.add_argument("--adapters", type=numbers, default=(1, 2, 10, 100), help="how many are registered while switching is timed")
    parser.add_argument("--repeats", type=int, default=9, help="turns of each side")
    parser.add_argument("--rank", type=int, default=16, help="of every slot")
    parser.add_argument("--precision", default="mixed:80", help="of the quantized graphs")
    parser.add_argument("--lora-bits", type=int, choices=(8, 16), default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache", type=Path, default=Path("out/sd15"), help="where graphs are kept, about 10 GB")
    return parser.parse_args()


def _tell(line: str) -> None:
    print(f"sd15: {line}", file=sys.stderr, flush=True)


def _built(cache: Path, shape: Shape, engines: tuple[str, ...]) -> dict[str, Any]:
    """The figures of building, now or when the cache was filled; in a process of its own, whose memory goes with it."""
    file = cache / BUILT_FILE
    kinds = ("float", *(TARGETS[engine] for engine in engines))
    if not file.is_file() or not all(graph_file(cache, kind, side).is_file() for kind in kinds for side in (MERGED, SHARED)):
        process = get_context("spawn").Process(target=_build, args=(cache, shape, engines))
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit("sd15: the graphs could not be built, see above")
    built: dict[str, Any] = json.loads(file.read_text())
    return built


def _build(cache: Path, shape: Shape, engines: tuple[str, ...]) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    parameters = sum(tensor.numel() for tensor in random_unet().parameters())
    built = build_graphs(cache, shape, engines, _tell)
    (cache / BUILT_FILE).write_text(json.dumps({**built, "parameters": parameters}))


def _engine(engine: str, cache: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Times, memory and figures of one engine; its four sides are loaded at once."""
    kinds = {
        FLOAT_MERGED: ("float", "float", MERGED), FLOAT_SHARED: ("float", "float", SHARED),
        INT_MERGED: (TARGETS[engine], options.precision, MERGED), INT_SHARED: (TARGETS[engine], options.precision, SHARED),
    }  # fmt: skip
    with ExitStack() as stack:
        sides = []
        for name, (kind, precision, side) in kinds.items():
            _tell(f"{engine}: load {name}")
            sides.append(
                stack.enter_context(
                    Side(name, engine=engine, precision=precision, file=graph_file(cache, kind, side), threads=options.threads)
                )
            )
        times = _take_turns(engine, sides, options.repeats)
        shared = sides[-1]
        trace = shared.ask("trace")
        rss = {side.name: side.ask("rss") for side in sides}
        _tell(f"{engine}: switch")
        switch = shared.ask("switch", options.adapters)
    steps = {name: {**msgspec.to_builtins(median_p95(turns)), "least_ms": min(turns), "turns_ms": turns} for name, turns in times.items()}
    return {"steps": steps, "peak_rss_bytes": rss, "load_seconds": {side.name: side.loaded for side in sides}, "switch_ms": switch,
            "a_b_a": trace, "figures": engine_figures(engine, times, switch)}  # fmt: skip


def _take_turns(engine: str, sides: list[Side], repeats: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {side.name: [] for side in sides}
    for turn in range(WARM_UP + repeats):
        _tell(f"{engine}: turn {turn + 1} of {WARM_UP + repeats}")
        for side in sides if turn % 2 else reversed(sides):
            sleep(REST_SECONDS)  # threads of the side before go to sleep
            ms = side.ask("step")
            if turn >= WARM_UP:
                times[side.name].append(ms)
    return times


def _rom(cache: Path, shape: Shape, engine: str, parameters: int) -> list[dict[str, float]]:
    folder = graph_file(cache, TARGETS[engine], SHARED).parent
    table = msgspec.json.decode((cache / SLOTS_FILE).read_bytes(), type=SlotTable)
    sizes = sum(slot.in_features + slot.out_features for slot in table.slots)
    return rom_rows(sum(file.stat().st_size for file in folder.iterdir()), parameters, sizes, shape.lora_bits)


def _print(report: dict[str, Any], figures: list[Figure]) -> None:
    for engine, measured in report["engines"].items():
        hardware = report["machine"][engine]
        print(f"\n{engine}: {hardware['cpu']}, {hardware['cores']} cores, {hardware['threads']} threads, {hardware['versions']}")
        for name, step in measured["steps"].items():
            memory = measured["peak_rss_bytes"][name] / 1e9
            print(f"  {name:24} {step['median_ms']:8.0f} ms  (least {step['least_ms']:.0f}, p95 {step['p95_ms']:.0f})  {memory:.1f} GB")
        print("  switch, ms by adapters registered: " + ", ".join(f"{count}: {ms:.2f}" for count, ms in measured["switch_ms"].items()))
        print(f"  A, B, A leaves no trace: {measured['a_b_a']['same'] and measured['a_b_a']['different']}")
    print("\nbuilt, seconds: " + ", ".join(f"{stage}: {value:.0f}" for stage, value in report["built"]["seconds"].items()))
    print_figures(figures)


if __name__ == "__main__":
    sys.exit(main())
