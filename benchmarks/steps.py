"""A step of the U-Nets of several bundles in turns: CPU time and the cost of a switch, engine beside engine on the same work.

    python -m benchmarks.steps ort=out/mixed openvino=out/openvino litert=out/dynamic [--repeats 12] [--threads 1] [--json FILE]

Bundles of one model; each gets its own adapters and the same noise. Sides take turns (A B C, C B A, ...) in one process; times are CPU
milliseconds of all threads, which other work on the machine moves less than wall time.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import msgspec
import numpy as np
from benchmarks.rig.report import command_line, write_report

from quad.core.slots import UNET
from quad.evaluate.bench.machine import machine
from quad.evaluate.bench.timing import median
from quad.runtime.adapters.buffers import Buffers
from quad.runtime.adapters.store import AdapterStore
from quad.runtime.bundle import open_bundle
from quad.runtime.engines.engine import SwitchSession, open_engine
from quad.runtime.engines.graph import bind_buffers

WARM_UP, SWITCHES, TIMESTEP, SEED = 2, 100, 500.0, 0


@dataclass(frozen=True, kw_only=True)
class Side:
    """One loaded U-Net with two adapters of its bundle, and its inputs."""

    name: str
    session: SwitchSession
    adapters: tuple[Buffers, Buffers]
    slots: tuple[str, ...]
    step: dict[str, Any]

    def bind(self, number: int) -> None:
        bind_buffers(self.session, self.adapters[number], self.slots)

    def run(self) -> tuple[float, Any]:
        """CPU milliseconds, and the output."""
        start = process_time()
        output = self.session.run(self.step)
        return (process_time() - start) * 1e3, output

    def switch(self) -> float:
        """Median wall milliseconds of binding another adapter in memory."""
        times = []
        for turn in range(SWITCHES):
            start = perf_counter()
            self.bind(turn % 2)
            times.append((perf_counter() - start) * 1e3)
        return median(times)

    def leaves_no_trace(self) -> bool:
        """A, B, A: the first output again, bit for bit, and B's another."""
        outputs = []
        for number in (0, 1, 0):
            self.bind(number)
            outputs.append(self.run()[1])
        return bool(np.array_equal(outputs[0], outputs[2]) and not np.array_equal(outputs[0], outputs[1]))


def open_side(words: str, threads: int) -> Side:
    """Of `ENGINE=BUNDLE`."""
    engine, _, path = words.partition("=")
    bundle = open_bundle(Path(path))
    session = open_engine(engine, (), bundle.manifest.precision).load(bundle.graph(UNET), threads)
    slots, store, draw = tuple(bundle.slots.of(UNET).input_shapes()), AdapterStore(bundle), np.random.default_rng(SEED)
    inputs = {name: [size or 1 for size in shape] for name, shape in session.inputs.items() if name not in slots}
    step = {name: draw.standard_normal(shape).astype(np.float32) for name, shape in inputs.items()}
    step["timestep"][:] = TIMESTEP
    first, second = bundle.manifest.adapters[:2]
    adapters = (store.buffers(first), store.buffers(second))
    return Side(name=f"{engine} {bundle.manifest.precision}", session=session, adapters=adapters, slots=slots, step=step)


def main() -> int:
    """Take turns and print."""
    parser = command_line(__doc__)
    parser.add_argument("sides", nargs="+", metavar="ENGINE=BUNDLE", help="with two adapters at least")
    parser.add_argument("--repeats", type=int, default=12, help="turns of each side")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    sides = [open_side(words, options.threads) for words in options.sides]
    facts = {side.name: {"a_b_a": side.leaves_no_trace(), "switch_ms": side.switch()} for side in sides}
    times: dict[str, list[float]] = {side.name: [] for side in sides}
    for turn in range(WARM_UP + options.repeats):
        for side in sides if turn % 2 else reversed(sides):
            ms, _ = side.run()
            if turn >= WARM_UP:
                times[side.name].append(ms)
    steps = {name: {"median_ms": median(turns), "least_ms": min(turns), "turns_ms": turns, **facts[name]} for name, turns in times.items()}
    engines = [words.partition("=")[0] for words in options.sides]
    write_report(options.json, {"machine": {each: msgspec.to_builtins(machine(each, options.threads)) for each in engines}, "steps": steps})
    for name, step in steps.items():
        switch = f"switch {step['switch_ms']:.2f} ms; A B A {step['a_b_a']}"
        print(f"{name:24} {step['median_ms']:8.1f} CPU ms, least {step['least_ms']:.1f}; {switch}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
