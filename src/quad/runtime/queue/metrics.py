"""The figures of a scheduler."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from quad.runtime.queue.ticket import State


@dataclass(frozen=True, kw_only=True)
class SchedulerMetrics:
    """Since the scheduler began.

    Args:
        ended: final state -> requests.
        refused: requests that found the queue full.
        waiting, running: requests now.
        switches: pictures that found other adapters bound than theirs.
        ahead: pictures that were prepared while another one was denoised.
        most_overtaken: how often a request was passed by later ones, at most.
        waited_s, worked_s: seconds in the queue of those that began, and at work on them.
    """

    ended: dict[State, int]
    refused: int
    waiting: int
    running: int
    switches: int
    ahead: int
    most_overtaken: int
    waited_s: float
    worked_s: float


@dataclass(kw_only=True)
class SchedulerCounters:
    """The same while it is counted."""

    ended: Counter[State] = field(default_factory=Counter)
    refused: int = 0
    switches: int = 0
    ahead: int = 0
    most_overtaken: int = 0
    waited_s: float = 0.0
    worked_s: float = 0.0

    def metrics(self, waiting: int, running: int) -> SchedulerMetrics:
        """A copy with the requests of this moment."""
        return SchedulerMetrics(**vars(self) | {"ended": dict(self.ended)}, waiting=waiting, running=running)
