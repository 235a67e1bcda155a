"""The cost of changing the adapter at Stable Diffusion 1.5's size: from memory, from disk, and the other ways to do it, in one run.

    python -m benchmarks.switching [--adapters 100] [--switches 1000] [--repeats 40] [--slots normalised] [--cache out/switching]
        [--json FILE]

Each side runs in a process of its own, one after the other. A switch from disk and a plain reading of the same file take turns, and
their ratio is the median over turns, so that a machine whose speed drifts does not decide. "Cold" files are dropped from the page cache
before (`POSIX_FADV_DONTNEED`). A switch ends when the graph is bound and every page of the adapter is in memory. Takes 1.4 GB of disk for
100 adapters, 0.9 GB for the merged graph, and at most 2 GB of memory.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from time import sleep, time
from typing import Any

import msgspec
import numpy as np
from benchmarks.rig.figures import paired_ratio, switching_figures
from benchmarks.rig.report import command_line, print_figures, write_report
from benchmarks.rig.switching_world import (
    OWN_RANKS,
    RANK,
    attention_slots,
    meta_unet,
    write_adapters,
    write_bound_graph,
    write_merged_graph,
)

from quad.core.slots import NORMALISED, SEARCHED, SlotMode
from quad.evaluate.bench.machine import machine
from quad.evaluate.bench.results import CallTimes
from quad.evaluate.bench.timing import median, median_p95, milliseconds
from quad.runtime.adapters.buffers import Buffers, padded_bytes, zero_buffers
from quad.runtime.adapters.store import AdapterStore
from quad.runtime.bundle import Bundle
from quad.runtime.engines.engine import SwitchSession, open_engine
from quad.runtime.engines.graph import bind_buffers

BUDGET_ADAPTERS, PEFT_ADAPTERS = 4, 3
LOADS = 5  # of the merged graph
STEP_NUMBERS = 16_000_000  # floats that are gone over between two switches
MAPPED, PADDED = "of the slots' rank", "of half of it"
COLD, WARM = "cold", "in the page cache"
SETTLED_SECONDS = 2.1  # a file is known again only when it is this old


@dataclass(frozen=True)
class World:
    """Where files are kept, and how slots hold an adapter."""

    cache: Path
    slots: SlotMode


class Ours:
    """A store of adapters and a graph with a slot at each attention projection."""

    def __init__(self, world: World, adapters: int, budget: int | None, engine: str = "ort") -> None:
        cache, slots = world.cache, attention_slots(meta_unet(), world.slots)
        self.bundle: Bundle = write_adapters(cache, slots, adapters)
        write_bound_graph(cache / "bound/model.onnx", slots)
        self._session: SwitchSession = open_engine(engine, (), "float").load(cache / "bound/model.onnx", 1)
        zeros = zero_buffers(slots)
        self.adapter_bytes = padded_bytes(zeros, zeros)
        self.store = AdapterStore(self.bundle, None if budget is None else budget * self.adapter_bytes)
        self._names = [*slots.input_shapes()]
        self._bound: Buffers = self.store.zeros

    def _bind(self, buffers: Buffers) -> None:
        self._bound = buffers  # held as long as it is bound, so that the store knows it to be in use
        bind_buffers(self._session, buffers, self._names)

    def switch(self, name: str) -> None:
        """Bind an adapter."""
        self._bind(self.store.buffers(name))

    def weigh(self, name: str, weight: float) -> None:
        """Bind an adapter at a weight."""
        self._bind(self.store.mix([name], [weight])[0])

    def rest(self) -> None:
        """Bound to the base, nothing in memory."""
        self._bind(self.store.zeros)
        self.store.close()

    def check(self, name: str) -> None:
        """See that the graph reads this adapter's numbers."""
        output = self._session.run({"sample": np.zeros((1, 1), np.float32)})
        expected = sum(float(array.flat[0]) for array in self.store.buffers(name).values())
        if abs(output.item() - expected) > 0.5:  # sums of whole numbers
            raise SystemExit(f"switching: bound to {name}, the graph gives {output.item()}, not {expected}")

    def file(self, name: str) -> Path:
        """The tensors of an adapter."""
        return self.bundle.adapter_files(name)[1]

    def of_rank(self, rank: int) -> list[str]:
        """Adapters by their own rank."""
        return [name for name in self.store.names if self.store.manifest(name).rank == rank]


def side_warm(world: World, repeats: int) -> CallTimes:
    """Switches between adapters that are in memory."""
    ours = Ours(world, 2 * len(OWN_RANKS), None)
    for name in ours.store.names:
        ours.switch(name)
    return median_p95([ms for _ in range(repeats) for name in ours.store.names for ms in milliseconds(partial(ours.switch, name), 1, 0)])


def side_between(world: World, engine: str, repeats: int) -> dict[str, float]:
    """Switches in memory as a server does them, between two steps, which leave nothing of an adapter in the processor's cache."""
    ours = Ours(world, len(OWN_RANKS), None, engine)
    step = np.zeros(STEP_NUMBERS, np.float32)
    for name in ours.store.names:
        ours.switch(name)
    times = []
    for turn in range(repeats * len(ours.store.names)):
        name = ours.store.names[turn % len(ours.store.names)]
        step += 1
        times += milliseconds(partial(ours.switch, name), 1, 0)
        ours.check(name)
    return msgspec.to_builtins(median_p95(times)) | {"least_ms": min(times)}


def side_kinds(cache: Path, adapters: int, repeats: int) -> dict[str, dict[str, float]]:
    """Switches in memory with both kinds of slots, few and many adapters there, all in turns: kinds -> by few and many, medians in ms."""
    few = len(OWN_RANKS)
    sides = {
        (kind, count): Ours(World(cache / f"{kind}-{count}", kind), count, None)
        for kind in (SEARCHED, NORMALISED)
        for count in (few, adapters)
    }
    times: dict[tuple[SlotMode, int], list[float]] = {side: [] for side in sides}
    for turn in range(-1, repeats):
        for side, ours in sides.items() if turn % 2 else reversed(sides.items()):
            # As many of each, spread over all: what the processor's own memory holds differs, and is part of the cost.
            names = ours.store.names if turn < 0 else ours.store.names[turn % max(1, side[1] // few) :: max(1, side[1] // few)]
            taken = [ms for name in names for ms in milliseconds(partial(ours.switch, name), 1, 0)]
            times[side] += taken if turn >= 0 else []
    return {kind: {"few_ms": median(times[kind, few]), "many_ms": median(times[kind, adapters])} for kind in (SEARCHED, NORMALISED)}


def side_weights(world: World, repeats: int) -> CallTimes:
    """Another weight of an adapter that is in memory."""
    ours = Ours(world, len(OWN_RANKS), None)
    name = ours.store.names[0]
    return median_p95([ms for turn in range(repeats) for ms in milliseconds(partial(ours.weigh, name, 0.1 + turn / repeats), 1, 0)])


def side_disk(world: World, repeats: int) -> dict[str, Any]:
    """Switches to adapters that are on disk, beside reading their files; the budget holds none but the one that is bound."""
    ours = Ours(world, 4 * len(OWN_RANKS), 0)
    _wait(ours)
    turns: dict[str, Any] = {}
    for kind, rank in ((MAPPED, RANK), (PADDED, RANK // 2)):
        names = ours.of_rank(rank)
        for first in (True, False):
            for pages in (COLD, WARM):
                turns[f"{'first' if first else 'later'}, {pages}, {kind}"] = _turns(ours, names, pages == COLD, first, repeats)
    return turns


def _turns(ours: Ours, names: list[str], cold: bool, first: bool, repeats: int) -> dict[str, Any]:
    """Reading and switching in turns; `first` hashes the file, as a new process does."""
    reads, switches = [], []
    for turn in range(-len(names), repeats):
        name = names[turn % len(names)]
        if first:
            ours.store.unregister(name)
        times = {}
        for side in ("read", "switch") if turn % 2 else ("switch", "read"):
            _drop_pages(ours.file(name)) if cold else ours.file(name).read_bytes()
            work: Callable[[], object] = ours.file(name).read_bytes if side == "read" else partial(ours.switch, name)
            times[side] = milliseconds(work, 1, 0)[0]
            if side == "switch":
                ours.check(name)
                ours.rest()
        if turn >= 0:
            reads.append(times["read"])
            switches.append(times["switch"])
    return {"switch_ms": median(switches), "read_ms": median(reads), "ratio": paired_ratio(switches, reads),
            "least_ratio": min(switches) / min(reads), "size_bytes": ours.file(names[0]).stat().st_size}  # fmt: skip


def side_memory(world: World, adapters: int, switches: int) -> dict[str, float]:
    """Resident memory over random switches under a budget, above what there was without adapters."""
    ours = Ours(world, adapters, BUDGET_ADAPTERS)
    draw = random.Random(0)
    for _ in range(switches // 10):
        ours.switch(draw.choice(ours.store.names))
    ours.rest()
    base, over = _resident_bytes(), []
    for number in range(switches):
        name = draw.choice(ours.store.names)
        ours.switch(name)
        over.append(_resident_bytes() - base)
        if number % 50 == 0:
            ours.check(name)
    metrics = ours.store.metrics()
    late, tenth = over[len(over) // 2 :], max(1, len(over) // 20)
    return {
        "budget_bytes": BUDGET_ADAPTERS * ours.adapter_bytes,
        "adapter_bytes": ours.adapter_bytes,
        "most_bytes": max(over),
        "registered": metrics.registered,
        "hits": metrics.hits,
        "misses": metrics.misses,
        "evictions": metrics.evictions,
        "load_ms": metrics.load_ms / metrics.loads,
        "growth_bytes": float(np.median(late[-tenth:]) - np.median(late[:tenth])),
    }


def side_peft(repeats: int) -> CallTimes:
    """`set_adapters` of diffusers, adapters of the same shapes, all resident; weights are left as the memory has them."""
    import torch
    from peft import LoraConfig

    unet = meta_unet().half().to_empty(device="cpu").requires_grad_(False)
    names = [f"noise{number}" for number in range(PEFT_ADAPTERS)]
    warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several adapters are meant
    for name in names:
        unet.add_adapter(LoraConfig(r=RANK, target_modules=["to_q", "to_k", "to_v", "to_out.0"]), adapter_name=name)
    with torch.no_grad():
        return median_p95([ms for _ in range(repeats) for name in names for ms in milliseconds(partial(unet.set_adapters, name), 1, 0)])


def side_merged(graph: Path, threads: int) -> dict[str, float]:
    """Loading a merged graph, which is a switch where each adapter has a graph of its own."""
    files = [file for file in graph.parent.iterdir() if file.name.startswith(graph.name)]

    def load() -> None:
        open_engine("ort", (), "w8a16").load(graph, threads)

    cold = []
    for _ in range(LOADS):
        for file in files:
            _drop_pages(file)
        cold += milliseconds(load, 1, 0)
    return {
        "cold_ms": median(cold),
        "warm_ms": median(milliseconds(load, LOADS, 1)),
        "size_bytes": sum(file.stat().st_size for file in files),
    }


def _wait(ours: Ours) -> None:
    """Until the youngest file is old enough to be known again."""
    youngest = max(ours.file(name).stat().st_ctime for name in ours.store.names)
    sleep(max(0.0, youngest + SETTLED_SECONDS - time()))


def _drop_pages(file: Path) -> None:
    number = os.open(file, os.O_RDONLY)
    os.fsync(number)
    os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(number)


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _apart(work: Callable[..., CallTimes | Mapping[str, Any]], *arguments: Any) -> dict[str, Any]:
    """The answer of a function in a process of its own."""
    print(f"switching: {work.__name__.removeprefix('side_')}", file=sys.stderr, flush=True)
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        answer: dict[str, Any] = msgspec.to_builtins(pool.submit(work, *arguments).result())
    return answer


def main() -> int:
    """Measure all sides and print the bars."""
    options = _options()
    graph = options.graph or options.cache / "merged/model.onnx"
    if not graph.is_file():
        write_merged_graph(graph, meta_unet())
    world = World(options.cache / options.slots, options.slots)
    report = {
        "slots": options.slots,
        "machine": msgspec.to_builtins(machine("ort", options.threads)),
        "warm": _apart(side_warm, world, options.repeats),
        "between": {engine: _apart(side_between, world, engine, options.repeats) for engine in ("ort", "openvino")},
        "kinds": _apart(side_kinds, options.cache, options.adapters, options.repeats),
        "weights": _apart(side_weights, world, options.repeats),
        "disk": _apart(side_disk, world, options.repeats),
        "memory": _apart(side_memory, world, options.adapters, options.switches),
        "diffusers": _apart(side_peft, options.repeats),
        "merged": _apart(side_merged, graph, options.threads),
    }
    figures = switching_figures(report)
    write_report(options.json, report, figures)
    _print(report)
    print_figures(figures)
    return 0


def _options() -> argparse.Namespace:
    parser = command_line(__doc__)
    parser.add_argument("--adapters", type=int, default=100, help="how many are registered while memory is measured")
    parser.add_argument("--switches", type=int, default=1000, help="random ones, while memory is measured")
    parser.add_argument("--repeats", type=int, default=40, help="turns of each kind")
    parser.add_argument("--threads", type=int, default=2, help="of the merged graph")
    parser.add_argument("--graph", type=Path, help="a merged graph to load instead of one of random weights")
    parser.add_argument("--slots", choices=(SEARCHED, NORMALISED), default=SEARCHED, help="how slots hold an adapter")
    parser.add_argument("--cache", type=Path, default=Path("out/switching"), help="where files are kept")
    return parser.parse_args()


def _print(report: Mapping[str, Any]) -> None:
    print(f"switch in memory {report['warm']['median_ms']:.2f} ms (p95 {report['warm']['p95_ms']:.2f})")
    for engine, times in report["between"].items():
        print(f"  between two steps, {engine}: {times['median_ms']:.3f} ms (least {times['least_ms']:.3f})")
    for kind, times in report["kinds"].items():
        print(f"  {kind} slots, in turns: {times['few_ms']:.3f} ms, {times['many_ms']:.3f} ms with many adapters in memory")
    for name, turn in report["disk"].items():
        least = f"least over least {turn['least_ratio']:.2f}"
        print(f"  {name}: {turn['switch_ms']:.2f} ms, reading {turn['size_bytes'] / 1e6:.1f} MB {turn['read_ms']:.2f} ms: "
              f"{turn['ratio']:.2f} x ({least})")  # fmt: skip
    print(f"diffusers set_adapters, {PEFT_ADAPTERS} resident: {report['diffusers']['median_ms']:.1f} ms")
    print(f"loading a merged graph of {report['merged']['size_bytes'] / 1e6:.0f} MB: cold {report['merged']['cold_ms']:.0f} ms, "
          f"in the page cache {report['merged']['warm_ms']:.0f} ms")  # fmt: skip
    print(f"memory: {json.dumps(report['memory'])}")


if __name__ == "__main__":
    sys.exit(main())
