"""The requests that a server knows: what it tells of each, and when it gives one up.

The log names a request by its number: whoever knows its id may fetch its picture.

Everything here happens on the event loop's thread.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import msgspec
from PIL import Image

from quad.core.errors import BusyError, InputError, QuadError, StoppedError, mismatch
from quad.runtime.queue.ticket import Ticket
from quad.runtime.stages import PipelineOutput
from quad.serve.api import ENDED, RequestState, State, Step, error_body
from quad.serve.error_response import HttpError
from quad.serve.limits import Budget, Limits
from quad.serve.pictures import held_bytes
from quad.serve.ticket_bridge import follow

_LOG = logging.getLogger(__name__)

_ID_BYTES = 8


@dataclass(kw_only=True)
class RequestRecord:
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
    outcome: PipelineOutput | QuadError | None = None
    _change: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def state(self) -> State:
        """The ticket's, but never ended before its outcome is here."""
        if self.ended:
            return self.ticket.state
        return "queued" if self.started_at is None and self.ticket.state == "queued" else "running"

    @property
    def ended(self) -> bool:
        return self.ended_at is not None

    @property
    def picture(self) -> Image.Image | None:
        return self.outcome.images[0] if isinstance(self.outcome, PipelineOutput) else None

    @property
    def error(self) -> QuadError | None:
        return (self.reason or self.outcome) if isinstance(self.outcome, QuadError) else None

    def to_state(self) -> RequestState:
        """The state as a client is told it."""
        state = RequestState(
            id=self.id,
            state=self.state,
            steps_done=len(self.steps),
            steps_total=self.steps[-1].total if self.steps else None,
            error=error_body(self.error) if self.error else None,
        )
        if not isinstance(self.outcome, PipelineOutput):
            return state
        out = self.outcome
        return msgspec.structs.replace(
            state, task=out.task, adapters=out.adapters, seed=out.seed, notes=out.notes, timings_ms=out.timings_ms
        )

    @property
    def change(self) -> asyncio.Event:
        """Set at the next step, or the end; take it before looking at what there is."""
        return self._change

    def step(self, step: Step, now: float) -> None:
        self.started_at = self.started_at or now
        self.steps.append(step)
        self._wake()

    def end(self, outcome: PipelineOutput | QuadError, now: float) -> None:
        self.outcome, self.ended_at = outcome, now
        self._wake()

    def _wake(self) -> None:
        change, self._change = self._change, asyncio.Event()
        change.set()


Overdue = Literal["lease", "time", "old"]
_OVERDUE: dict[Overdue, str] = {"lease": "nobody asks after it", "time": "it runs too long", "old": "nobody fetched it"}


def overdue(record: RequestRecord, limits: Limits, now: float) -> Overdue | None:
    """Why to give a request up: nobody asks after it, it runs too long, or it was long ago."""
    if record.ended_at is not None:
        return "old" if now - max(record.ended_at, record.asked_at) > limits.kept_s and not record.listeners else None
    if record.started_at is not None and now - record.started_at > limits.time_limit_s:
        return "time"
    if not record.listeners and now - record.asked_at > limits.lease_s:
        return "lease"
    return None


def surplus(ended: list[RequestRecord], limits: Limits) -> list[RequestRecord]:
    """Finished requests that go, the longest ago first, so that the rest is within bounds; the last one stays, however large it is."""
    oldest_first = sorted(ended, key=lambda record: record.ended_at or 0.0)
    kept_bytes, count = sum(held_bytes(record.picture) for record in oldest_first), len(oldest_first)
    surplus_records = []
    for record in oldest_first[:-1]:
        if count <= limits.max_kept and kept_bytes <= limits.max_kept_bytes:
            break
        surplus_records.append(record)
        kept_bytes, count = kept_bytes - held_bytes(record.picture), count - 1
    return surplus_records


def _kind(error: QuadError | None) -> str:
    """The class of an error, for the log: its message may quote what a client has sent."""
    return "" if error is None else f", {type(error).__name__}"


class RequestRegistry:
    """All requests by id."""

    def __init__(self, limits: Limits, budget: Budget, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits, self._budget, self.clock = limits, budget, clock
        self._records: dict[str, RequestRecord] = {}
        self._reserved = 0
        self.ended: dict[State, int] = dict.fromkeys(ENDED, 0)
        self.seconds = 0.0

    def __iter__(self) -> Iterator[RequestRecord]:
        return iter(list(self._records.values()))

    @property
    def live(self) -> list[RequestRecord]:
        return [record for record in self if not record.ended]

    @contextmanager
    def reserve(self) -> Iterator[None]:
        """Reserve a place in the queue for a request that is being read.

        Raises:
            HttpError: 503, the queue is full.
        """
        most = self._limits.max_queue
        if len(self.live) + self._reserved >= most:
            raise HttpError(503, BusyError(mismatch("queue", f"fewer than {most} requests", str(most), "ask again later")))
        self._reserved += 1
        try:
            yield
        finally:
            self._reserved -= 1

    def add(self, ticket: Ticket, n_bytes: int) -> RequestRecord:
        """Begin to follow a request; `n_bytes` of the budget are its own from now on."""
        record = RequestRecord(id=secrets.token_hex(_ID_BYTES), ticket=ticket, held_bytes=n_bytes, asked_at=self.clock())
        self._records[record.id] = record
        _LOG.info("request %d: queued, %d are waiting or running", ticket.id, len(self.live))
        follow(ticket, asyncio.get_running_loop(), lambda step: record.step(step, self.clock()), lambda outcome: self._end(record, outcome))
        return record

    def find(self, key: str) -> RequestRecord:
        """A request that somebody asks after.

        Raises:
            HttpError: 404, there is none of that id.
        """
        record = self._records.get(key)
        if record is None:
            raise HttpError(
                404, InputError(mismatch("request", "the id of one that is kept", repr(key), "it may have been given up, ask anew"))
            )
        record.asked_at = self.clock()
        return record

    def cancel(self, record: RequestRecord, reason: QuadError | None = None) -> None:
        """Cancel it, where it has not ended."""
        if not record.ended:
            _LOG.info("request %d: cancelled by the server", record.ticket.id)
            record.reason = record.reason or reason
            record.ticket.cancel()

    def forget(self, record: RequestRecord) -> None:
        """Cancel it, and answer no more questions after it."""
        self.cancel(record)
        self._records.pop(record.id, None)

    @contextmanager
    def listening(self, record: RequestRecord) -> Iterator[Callable[[], None]]:
        """Somebody hears of it while the block runs. When the last one goes without having called what this yields, its use has gone."""
        record.listeners += 1
        released: list[bool] = []
        try:
            yield lambda: released.append(True)
        finally:
            record.listeners -= 1
            record.asked_at = self.clock()
            if not record.listeners and not released:
                self.cancel(record)

    def maintain(self) -> None:
        """Give up what is overdue, forget what is too much."""
        now = self.clock()
        for record in self:
            if record.started_at is None and not record.ended and record.ticket.state == "running":
                record.started_at = now
            why = overdue(record, self._limits, now)
            if why is not None:
                _LOG.info("request %d: given up, %s", record.ticket.id, _OVERDUE[why])
            match why:
                case "time":
                    most = f"{self._limits.time_limit_s:g} s"
                    self.cancel(record, StoppedError(mismatch("request", f"at most {most} from its start", "more", "ask for fewer steps")))
                case "lease" | "old":
                    self.forget(record)
        for record in surplus([record for record in self if record.ended], self._limits):
            _LOG.info("request %d: forgotten, too many pictures wait", record.ticket.id)
            self.forget(record)

    def _end(self, record: RequestRecord, outcome: PipelineOutput | QuadError) -> None:
        now = self.clock()
        record.end(outcome, now)
        self._budget.give(record.held_bytes)
        self.ended[record.state] += 1
        _LOG.info("request %d: %s after %d steps%s", record.ticket.id, record.state, len(record.steps), _kind(record.error))
        self.seconds += now - (record.started_at or now)
