"""Timed calls and the figures that are told of them."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import numpy as np

from quad.evaluate.bench.results import CallTimes

WARM_UP = 2


def milliseconds(run: Callable[[], object], repeats: int, warm_up: int = WARM_UP) -> list[float]:
    """Wall-clock of each of `repeats` calls, ms, after `warm_up` that do not count."""
    times = []
    for i in range(warm_up + repeats):
        start = perf_counter()
        run()
        if i >= warm_up:
            times.append((perf_counter() - start) * 1e3)
    return times


def median(times: list[float]) -> float:
    """The middle of some times, in their unit."""
    return float(np.median(np.asarray(times)))


def median_p95(times: list[float]) -> CallTimes:
    """Median and 95th percentile of some times in ms."""
    return CallTimes(median_ms=median(times), p95_ms=float(np.quantile(np.asarray(times), 0.95)))
