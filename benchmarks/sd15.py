"""The cost of one graph for all adapters, and the gain of 8 bits, on a U-Net of Stable Diffusion 1.5's shape.

    python -m benchmarks.sd15 [--latent 32|64] [--engines ort,openvino] [--adapters 1,2,10,100] [--repeats N] [--groups speed,cost]
        [--json FILE]

Weights are random: times and sizes are those of the real model, pictures are none. The sides of a group take turns (A B C, C B A, ...),
each in a process of its own, and ratios are medians over turns, so that a machine whose speed drifts does not decide. The group `speed`
compares our graph with the float graph as its user would run it, in bf16 where engine and processor have it; the group `cost` compares
one graph for all with a merged one. All operands of attention go to 8 bits, the most that a ranking can give: random weights have none.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from time import sleep
from typing import Any

import msgspec
from benchmarks.rig.figures import (
    BF16_MERGED,
    FLOAT_MERGED,
    FLOAT_SHARED,
    INT_MERGED,
    INT_SHARED,
    Figure,
    cost_figures,
    placement_figures,
    rom_figures,
    rom_rows,
    speed_figures,
)
from benchmarks.rig.graphs import MERGED, SHARED, SLOTS_FILE, TARGETS, Shape, build_graphs, graph_file, random_unet
from benchmarks.rig.peak import int8_peak
from benchmarks.rig.report import command_line, print_figures, write_report
from benchmarks.rig.sides import Side

from quad.core.float_type import BF16
from quad.core.slots import SlotTable
from quad.evaluate.bench.machine import machine
from quad.evaluate.bench.timing import median_p95
from quad.runtime.engines.engine import open_engine
from quad.runtime.engines.float_types import in_bf16

REST_SECONDS, WARM_UP = 0.05, 2
SPEED_GROUP, COST_GROUP = "speed", "cost"
GROUPS = {SPEED_GROUP: (FLOAT_MERGED, BF16_MERGED, INT_SHARED), COST_GROUP: (FLOAT_MERGED, FLOAT_SHARED, INT_MERGED, INT_SHARED)}
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

    def words(what: str, known: Collection[str]) -> Callable[[str], tuple[str, ...]]:
        def read(text: str) -> tuple[str, ...]:
            return tuple(part for part in text.split(",") if part in known or parser.error(f"{what}: {' | '.join(known)}, found {part}"))

        return read

    parser = command_line(__doc__)
    parser.add_argument("--latent", type=int, choices=(32, 64), default=32, help="side of the latent; 32 is a picture of 256 pixels")
    parser.add_argument("--engines", type=words("engine", TARGETS), default=tuple(TARGETS), help="of ort,openvino")
    parser.add_argument("--groups", type=words("group", GROUPS), default=tuple(GROUPS), help="of speed,cost")
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
    """Times, memory and figures of one engine; the sides of a group are loaded at once and take turns."""
    has_bf16 = in_bf16(open_engine(engine, (), options.precision)) is not None
    floats, quantized = (BF16 if has_bf16 else ""), (TARGETS[engine], options.precision)
    kinds = {
        FLOAT_MERGED: ("float", "float", MERGED, ""), BF16_MERGED: ("float", "float", MERGED, BF16),
        FLOAT_SHARED: ("float", "float", SHARED, ""),
        INT_MERGED: (*quantized, MERGED, floats), INT_SHARED: (*quantized, SHARED, floats),
    }  # fmt: skip
    measured = _Measured()
    for group in options.groups:
        names = [name for name in GROUPS[group] if has_bf16 or name != BF16_MERGED]
        with ExitStack() as stack:
            sides = []
            for name in names:
                kind, precision, side, hint = kinds[name]
                _tell(f"{engine}: load {name}")
                file = graph_file(cache, kind, side)
                sides.append(
                    stack.enter_context(Side(name, engine=engine, precision=precision, file=file, threads=options.threads, float_hint=hint))
                )
            measured.take(group, engine, sides, options)
    return measured.report(engine, options)


@dataclass
class _Measured:
    """What the groups of one engine's sides showed."""

    times: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    rss: dict[str, int] = field(default_factory=dict)
    loaded: dict[str, float] = field(default_factory=dict)
    switch: dict[int, float] = field(default_factory=dict)
    trace: dict[str, bool] = field(default_factory=dict)

    def take(self, group: str, engine: str, sides: list[Side], options: argparse.Namespace) -> None:
        """A group's turns; of our own graph, whether a switch leaves a trace and what it takes."""
        self.times[group] = _take_turns(engine, sides, options.repeats)
        self.loaded |= {side.name: side.loaded for side in sides}
        if group == SPEED_GROUP:
            self.trace = sides[-1].ask("trace")
        self.rss |= {side.name: side.ask("rss") for side in sides}
        if group == SPEED_GROUP:
            _tell(f"{engine}: switch")
            self.switch = sides[-1].ask("switch", options.adapters)

    def report(self, engine: str, options: argparse.Namespace) -> dict[str, Any]:
        """All of it, and the figures."""
        peak = int8_peak(engine, options.threads)
        figures = [] if SPEED_GROUP not in self.times else speed_figures(engine, options.latent, self.times[SPEED_GROUP], peak)
        if COST_GROUP in self.times:
            figures += cost_figures(engine, self.times[COST_GROUP], self.switch)
        times = {name: turns for group in self.times.values() for name, turns in group.items()}
        steps = {
            name: {**msgspec.to_builtins(median_p95(turns)), "least_ms": min(turns), "turns_ms": turns} for name, turns in times.items()
        }
        return {"steps": steps, "peak_rss_bytes": self.rss, "load_seconds": self.loaded, "switch_ms": self.switch, "a_b_a": self.trace,
                "int8_peak": peak, "figures": figures}  # fmt: skip


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
        print(f"  int8 peak: {measured['int8_peak'] / 1e9:.0f} GOP/s")
        if measured["switch_ms"]:
            print("  switch, ms by adapters registered: " + ", ".join(f"{count}: {ms:.2f}" for count, ms in measured["switch_ms"].items()))
            print(f"  A, B, A leaves no trace: {measured['a_b_a']['same'] and measured['a_b_a']['different']}")
    print("\nbuilt, seconds: " + ", ".join(f"{stage}: {value:.0f}" for stage, value in report["built"]["seconds"].items()))
    print_figures(figures)


if __name__ == "__main__":
    sys.exit(main())
