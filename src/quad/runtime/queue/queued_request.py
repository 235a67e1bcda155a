"""A request on its way through the scheduler."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field

from quad.core.errors import BackendError, UsageError, lack_of, mismatch
from quad.runtime.arguments import number, whole_number
from quad.runtime.engines.engine import first_line
from quad.runtime.queue.ordering import misses
from quad.runtime.queue.ticket import State, Ticket
from quad.runtime.request import Request, Resolved
from quad.runtime.stages import Prepared

Pin = Callable[[Sequence[str]], AbstractContextManager[None]]


def check_terms(priority: int, deadline_s: float | None) -> None:
    """Numbers that the queue is ordered by.

    Raises:
        UsageError: one is none.
    """
    whole_number("priority", priority, instead="leave it out for 0")
    if deadline_s is not None and not 0 < number(deadline_s) < math.inf:
        raise UsageError(mismatch("deadline_s", "seconds from now, more than 0", repr(deadline_s), "leave it out for none"))


def as_exception(number: int, error: BaseException) -> Exception:
    """The exception that a client gets; one that is meant to end a thread, as a library's panic is, becomes one that is not."""
    if (lack := lack_of("picture", error)) is not None:
        return lack
    if isinstance(error, Exception):
        return error
    reason = f"{type(error).__name__}: {first_line(error)}"
    return BackendError(mismatch(f"request {number}", "a picture", reason, "report it with the request"))


class Stopped(Exception):
    """Ends a picture at a step."""

    def __init__(self, state: State) -> None:
        super().__init__(state)
        self.state = state


@dataclass(eq=False, kw_only=True)
class QueuedRequest:
    """One request from `submit` to its end.

    Args:
        deadline_s, arrived_s: by the scheduler's clock.
        previews: a coarse look at it is wanted after every step.
        prefetched: it was the next once, and is being made ready.
        ahead: its preparation on the other thread.
        stop: the state that it is to end in, whatever it has reached.
    """

    ticket: Ticket
    request: Request
    resolved: Resolved
    deadline_s: float | None
    arrived_s: float
    previews: bool = False
    prefetched: bool = False
    ahead: Future[Prepared] | None = None
    stop: State | None = None
    _stepped_s: float = 0.0
    _fastest_s: float = math.inf
    _pins: ExitStack = field(default_factory=ExitStack)
    _pinned: bool = False

    def pin(self, pinned: Pin) -> None:
        """Keep its adapters in memory until it ends; once.

        Raises:
            UsageError: one of them has gone.
        """
        if not self._pinned:
            self._pins.enter_context(pinned(list(self.resolved.weights)))
            self._pinned = True

    def unpin(self) -> None:
        self._pins.close()

    def check(self, index: int, total: int, now_s: float) -> None:
        """After step `index`, -1 for before the first.

        Raises:
            Stopped: it was cancelled, or cannot end in time.
        """
        if self.stop is not None:
            raise Stopped(self.stop)
        if index > 0:  # the first may have waited for its graph
            self._fastest_s = min(self._fastest_s, now_s - self._stepped_s)
        self._stepped_s = now_s
        if misses(self.deadline_s, now_s, total - 1 - index, self._fastest_s if index > 0 else 0.0):
            raise Stopped("expired")
