"""The requests that a server knows: what it tells of each, and when it gives one up.

Everything here happens on the event loop's thread.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from PIL import Image

from quad.core.errors import BusyError, InputError, QuadError, StoppedError, mismatch
from quad.runtime.queue.ticket import Ticket
from quad.runtime.stages import PipelineOutput
from quad.serve.api import ENDED, RequestState, State, Step, error_body
from quad.serve.error_response import Refusal
from quad.serve.limits import Budget, Limits
from quad.serve.pictures import held_bytes
from quad.serve.ticket_bridge import follow

_ID_BYTES = 8


@dataclass
class Entry:
    """One request.

    Args:
        id: drawn, not counted: who knows it was told it.
        held_bytes: of the pictures it was given.
        asked_at: seconds of the clock when somebody last asked after it.
        listeners: open streams and waits for it.
        reason: why the server itself gave it up.
    """

    id: str
    ticket: Ticket
    held_bytes: int
    asked_at: float
    started_at: float | None = None
    ended_at: float | None = None
    listeners: int = 0
    reason: QuadError | None = None
    steps: list[Step] = field(default_factory=list)
    output: PipelineOutput | None = None
    error: QuadError | None = None
    _state: State | None = None
    _change: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def state(self) -> State:
        """Never ended before its outcome is here."""
        if self._state is None:
            return "queued" if self.started_at is None and self.ticket.state == "queued" else "running"
        return self._state

    @property
    def ended(self) -> bool:
        return self._state is not None

    @property
    def picture(self) -> Image.Image | None:
        return self.output.images[0] if self.output else None

    def tell(self) -> RequestState:
        """What a client is told."""
        total = self.steps[-1].total if self.steps else None
        error = error_body(self.error) if self.error else None
        if self.output is None:
            return RequestState(self.id, self.state, len(self.steps), total, error=error)
        out = self.output
        facts = (out.task, out.adapters, out.seed, out.notes, out.timings_ms)
        return RequestState(self.id, self.state, len(self.steps), total, *facts)

    @property
    def change(self) -> asyncio.Event:
        """Set at the next step, or the end; take it before looking at what there is."""
        return self._change

    def step(self, step: Step, now: float) -> None:
        self.started_at = self.started_at or now
        self.steps.append(step)
        self._wake()

    def end(self, state: State, outcome: PipelineOutput | QuadError, now: float) -> None:
        self._state, self.ended_at = state, now
        if isinstance(outcome, PipelineOutput):
            self.output = outcome
        else:
            self.error = self.reason or outcome
        self._wake()

    def _wake(self) -> None:
        change, self._change = self._change, asyncio.Event()
        change.set()


Why = Literal["lease", "time", "old"]


def overdue(entry: Entry, limits: Limits, now: float) -> Why | None:
    """Why to give a request up: nobody asks after it, it runs too long, or it was long ago."""
    if entry.ended_at is not None:
        return "old" if now - max(entry.ended_at, entry.asked_at) > limits.kept_s and not entry.listeners else None
    if entry.started_at is not None and now - entry.started_at > limits.time_limit_s:
        return "time"
    if not entry.listeners and now - entry.asked_at > limits.lease_s:
        return "lease"
    return None


def surplus(ended: list[Entry], limits: Limits) -> list[Entry]:
    """Which finished requests go, the longest ago first, so that the rest is within bounds; the last one stays, however large it is."""
    oldest_first = sorted(ended, key=lambda entry: entry.ended_at or 0.0)
    kept_bytes, count = sum(held_bytes(entry.picture) for entry in oldest_first), len(oldest_first)
    gone = []
    for entry in oldest_first[:-1]:
        if count <= limits.max_kept and kept_bytes <= limits.max_kept_bytes:
            break
        gone.append(entry)
        kept_bytes, count = kept_bytes - held_bytes(entry.picture), count - 1
    return gone


class Book:
    """All requests by id."""

    def __init__(self, limits: Limits, budget: Budget, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits, self._budget, self.clock = limits, budget, clock
        self._entries: dict[str, Entry] = {}
        self._coming = 0
        self.ended: dict[State, int] = dict.fromkeys(ENDED, 0)
        self.seconds = 0.0

    def __iter__(self) -> Iterator[Entry]:
        return iter(list(self._entries.values()))

    @property
    def live(self) -> list[Entry]:
        return [entry for entry in self if not entry.ended]

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place in the queue for a request that is being read.

        Raises:
            Refusal: 503, the queue is full.
        """
        most = self._limits.max_queue
        if len(self.live) + self._coming >= most:
            raise Refusal(503, BusyError(mismatch("queue", f"fewer than {most} requests", str(most), "ask again later")))
        self._coming += 1
        try:
            yield
        finally:
            self._coming -= 1

    def add(self, ticket: Ticket, n_bytes: int) -> Entry:
        """Begin to follow a request; `n_bytes` of the budget are its own from now on."""
        entry = Entry(secrets.token_hex(_ID_BYTES), ticket, n_bytes, self.clock())
        self._entries[entry.id] = entry
        follow(ticket, asyncio.get_running_loop(), lambda step: entry.step(step, self.clock()), lambda *end: self._end(entry, *end))
        return entry

    def find(self, key: str) -> Entry:
        """A request that somebody asks after.

        Raises:
            Refusal: 404, there is none of that id.
        """
        entry = self._entries.get(key)
        if entry is None:
            raise Refusal(
                404, InputError(mismatch("request", "the id of one that is kept", repr(key), "it may have been given up, ask anew"))
            )
        entry.asked_at = self.clock()
        return entry

    def give_up(self, entry: Entry, reason: QuadError | None = None) -> None:
        """Cancel it, where it has not ended."""
        if not entry.ended:
            entry.reason = entry.reason or reason
            entry.ticket.cancel()

    def forget(self, entry: Entry) -> None:
        """Cancel it, and answer no more questions after it."""
        self.give_up(entry)
        self._entries.pop(entry.id, None)

    @contextmanager
    def listening(self, entry: Entry) -> Iterator[Callable[[], None]]:
        """Somebody hears of it while the block runs. When the last one goes without having called what this yields, its use has gone."""
        entry.listeners += 1
        leaves_it: list[bool] = []
        try:
            yield lambda: leaves_it.append(True)
        finally:
            entry.listeners -= 1
            entry.asked_at = self.clock()
            if not entry.listeners and not leaves_it:
                self.give_up(entry)

    def look_after(self) -> None:
        """Give up what is overdue, forget what is too much."""
        now = self.clock()
        for entry in self:
            if entry.started_at is None and not entry.ended and entry.ticket.state == "running":
                entry.started_at = now
            match overdue(entry, self._limits, now):
                case "time":
                    most = f"{self._limits.time_limit_s:g} s"
                    self.give_up(entry, StoppedError(mismatch("request", f"at most {most} from its start", "more", "ask for fewer steps")))
                case "lease" | "old":
                    self.forget(entry)
        for entry in surplus([entry for entry in self if entry.ended], self._limits):
            self.forget(entry)

    def _end(self, entry: Entry, state: State, outcome: PipelineOutput | QuadError) -> None:
        now = self.clock()
        entry.end(state, outcome, now)
        self._budget.give(entry.held_bytes)
        self.ended[state] += 1
        self.seconds += now - (entry.started_at or now)
