"""The order of requests: pure functions of the queue, the clock and the adapters that are bound.

A higher priority goes first; among equals one that is about to miss its deadline, then one whose adapters are bound already, then the
earlier deadline, then who came first. All of that may let a request pass others which came before it, and no request is passed more than
`most_overtaken` times: after that it goes next, before any priority. So whoever joins a queue of n has at most n + most_overtaken
pictures before its own, and a lower priority goes before a higher one only where it has been passed that often.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from quad.runtime.adapters.block_weights import Weight

Key = tuple[tuple[str, Weight], ...]
_NEAR = 2.0  # a deadline within so many pictures is near


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """A request in the queue.

    Args:
        number: in the order of arrival.
        key: of its adapters, see `adapter_key`.
        deadline_s: by the scheduler's clock; None for none.
        overtaken: how many that came later have gone before it.
    """

    number: int
    key: Key
    priority: int = 0
    deadline_s: float | None = None
    overtaken: int = 0

    @property
    def due_s(self) -> float:
        return math.inf if self.deadline_s is None else self.deadline_s


@dataclass(frozen=True)
class Moment:
    """The facts that the next request is chosen by: the clock, the adapters that are bound, and the seconds that a picture takes."""

    now_s: float
    bound: Key | None = None
    pace_s: float = 0.0


def adapter_key(weights: Mapping[str, Weight]) -> Key:
    """One key for one set of adapters and weights."""
    return tuple(sorted(weights.items()))


def choose(queue: Sequence[Waiting], moment: Moment, most_overtaken: int) -> Waiting:
    """The next of a queue of one at least."""
    patient = [waiting for waiting in queue if waiting.overtaken >= most_overtaken]
    if patient:
        return min(patient, key=lambda waiting: waiting.number)

    def rank(waiting: Waiting) -> tuple[int, bool, bool, float, int]:
        near = waiting.due_s - moment.now_s <= _NEAR * moment.pace_s
        return (-waiting.priority, not near, waiting.key != moment.bound, waiting.due_s, waiting.number)

    return min(queue, key=rank)


def without(queue: Iterable[Waiting], chosen: Waiting) -> tuple[Waiting, ...]:
    """The queue once the chosen one has gone: those that came before it have been overtaken."""
    remaining = (waiting for waiting in queue if waiting.number != chosen.number)
    return tuple(replace(waiting, overtaken=waiting.overtaken + 1) if waiting.number < chosen.number else waiting for waiting in remaining)


def expired(queue: Iterable[Waiting], now_s: float) -> list[Waiting]:
    """Those whose time is over."""
    return [waiting for waiting in queue if waiting.due_s <= now_s]


def misses(deadline_s: float | None, now_s: float, left: int, fastest_s: float) -> bool:
    """Whether a picture cannot end in time: not even if all steps that are left were as fast as the fastest so far."""
    return deadline_s is not None and now_s + left * fastest_s > deadline_s
