"""The cost of changing the adapter, and whether adapters that lie in memory beside it make it dearer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import msgspec

from quad.core.picture_size import graph_name
from quad.core.slots import UNET
from quad.evaluate.bench.results import CallTimes, ResidentTimes, SwitchTimes
from quad.evaluate.bench.timing import median, median_p95, milliseconds
from quad.runtime.adapters.buffers import largest_bytes
from quad.runtime.pipeline import QuadPipeline

RESIDENT = (1, 2, 10, 100)
# Switches of each kind at each visit of a count.
SWITCHES = 100
# Counts whose adapters would take more memory are left out.
RESIDENT_BYTES = 4_000_000_000


def bench_switch(pipe: QuadPipeline, rounds: int = 10) -> SwitchTimes:
    """Ms to bind another adapter: cold reads and checks its file (page cache warm), warm finds it in memory. Medians over adapters.

    `pipe` is as opened: its first touch of each adapter is the cold switch. Graphs of all profiles are in memory before.
    """
    if not pipe.adapters:
        return SwitchTimes(warm_ms=0.0, cold_ms=0.0, warm_p95_ms=0.0)
    graph_ms = _load_groups(pipe)
    cold, warm = _round(pipe, pipe.adapters), [time for _ in range(rounds) for time in _round(pipe, pipe.adapters)]
    times = median_p95(warm)
    return SwitchTimes(warm_ms=times.median_ms, cold_ms=median(cold), warm_p95_ms=times.p95_ms, graph_ms=graph_ms)


def _load_groups(pipe: QuadPipeline) -> float | msgspec.UnsetType:
    """Median ms to load the U-Net of a further group of adapters, which is bound to the base then; unset where there is none."""

    def load(group: int) -> None:
        with pipe.graph(graph_name(UNET, None, group)).loaded():
            pass

    loads = [milliseconds(partial(load, group), 1, 0)[0] for group in range(1, pipe.bundle.group_count)]
    return median(loads) if loads else msgspec.UNSET


def bench_resident(pipe: QuadPipeline, counts: Sequence[int] = RESIDENT) -> dict[str, ResidentTimes]:
    """Warm switches by the number of adapters in memory.

    The bundle's own adapters come first, then copies of them under new names. Counts are visited upwards and down again, so that a
    machine that grows slower meanwhile does not look like a cost of adapters. Leaves the bundle's own adapters, none in memory.
    """
    if not pipe.bundle.manifest.adapters:
        return {}
    largest = largest_bytes(pipe.bundle.slots)
    fitting = [count for count in counts if count * largest <= RESIDENT_BYTES]
    residents = _ResidentAdapters(pipe)
    pair: dict[int, list[float]] = {count: [] for count in fitting}
    in_turn: dict[int, list[float]] = {count: [] for count in fitting}
    for count in (*fitting, *reversed(fitting)):
        residents.resize(count)
        _round(pipe, residents.names)
        for _ in range(SWITCHES // 2):
            pair[count] += _round(pipe, (residents.names[0], residents.names[-1]))
        for _ in range(-(-SWITCHES // count)):
            in_turn[count] += _round(pipe, residents.names)
    residents.resize(0)
    by_count = {}
    for count in fitting:
        times = median_p95(pair[count])
        by_count[str(count)] = ResidentTimes(times.median_ms, times.p95_ms, in_turn_ms=median(in_turn[count]))
    return by_count


def flatness(resident: Mapping[str, CallTimes]) -> float | None:
    """The dearest median over the cheapest; 1 is flat, None where there is one count or none."""
    medians = [times.median_ms for times in resident.values()]
    return max(medians) / min(medians) if len(medians) > 1 else None


def _round(pipe: QuadPipeline, names: Sequence[str]) -> list[float]:
    """Ms of one switch to each adapter, one after the other."""
    return [milliseconds(partial(pipe.set_adapters, name), 1, 0)[0] for name in names]


class _ResidentAdapters:
    """The adapters that are in a pipeline's memory, as many as asked for."""

    def __init__(self, pipe: QuadPipeline) -> None:
        self._pipe, self._bundled = pipe, pipe.bundle.manifest.adapters
        pipe.unload()
        self.names: list[str] = []

    def resize(self, count: int) -> None:
        while len(self.names) > count:
            self._pipe.unload(self.names.pop())
        while len(self.names) < count:
            self._add()

    def _add(self) -> None:
        number = len(self.names)
        name = self._bundled[number % len(self._bundled)]
        if number >= len(self._bundled):
            name = self._pipe.load_lora_weights(self._pipe.bundle.adapter_files(name)[0].parent, f"{name}.{number}")
        self._pipe.set_adapters(name)
        self.names.append(name)
