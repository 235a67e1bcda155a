"""Timing of the stages of a build."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from quad.core.memory import peak_ram_bytes

_LOG = logging.getLogger(__name__)

T = TypeVar("T")
Progress = Callable[[str, float], None]  # stage that begins, share of the stages done in [0, 1]


def silent(stage: str, share: float) -> None:
    """A `Progress` that shows nothing."""


def with_progress(items: Iterable[T], total: int, name: str, progress: Progress) -> Iterator[T]:
    """The same items; `progress` hears of each before its work begins."""
    for index, item in enumerate(items):
        progress(f"{name} {index + 1} of {total}", index / total)
        yield item


class StageClock:
    """Seconds per stage, by the clock and of the processor, and memory; tells `progress` when a stage begins.

    Args:
        stages: names in the order they will run, for the share done.
    """

    def __init__(self, stages: tuple[str, ...], progress: Progress) -> None:
        self._stages, self._progress = stages, progress
        self._share = 0.0
        self.seconds: dict[str, float] = {}
        self.cpu: dict[str, float] = {}
        self.peak_bytes: dict[str, int] = {}  # largest resident size of the process so far, at each stage's end

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        # Export and place take turns, one component after the other: what was shown never goes back.
        self._share = max(self._share, self._stages.index(stage) / len(self._stages))
        self._progress(stage, self._share)
        _LOG.debug("stage %s: begins", stage)
        start, cpu = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            seconds = time.perf_counter() - start
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
            self.cpu[stage] = self.cpu.get(stage, 0.0) + time.process_time() - cpu
            self.peak_bytes[stage] = peak_ram_bytes()
            _LOG.info("stage %s: %.1f s", stage, seconds)

    def done(self) -> None:
        """Say that all of them are."""
        self._progress("done", 1.0)

    def within(self, stage: str) -> Progress:
        """A `Progress` for the parts of one stage: its shares are of that stage."""
        first = self._stages.index(stage)

        def tell(part: str, share: float) -> None:
            self._share = max(self._share, (first + share) / len(self._stages))
            self._progress(part, self._share)

        return tell
