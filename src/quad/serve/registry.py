"""The requests that a server knows: what it tells of each, and when it gives one up.

The log names a request by its number: whoever knows its id may fetch its picture.

Everything here happens on the event loop's thread.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from quad.core.errors import BusyError, InputError, QuadError, StoppedError, mismatch
from quad.runtime.queue.ticket import Ticket
from quad.runtime.stages import PipelineOutput
from quad.serve.api import ENDED, State
from quad.serve.error_response import HttpError
from quad.serve.limits import Budget, Limits
from quad.serve.pictures import held_bytes
from quad.serve.request_record import RequestRecord
from quad.serve.ticket_bridge import follow

_LOG = logging.getLogger(__name__)

_ID_BYTES = 8


Overdue = Literal["lease", "time", "old"]
_OVERDUE: dict[Overdue, str] = {"lease": "nobody asks after it", "time": "it runs too long", "old": "nobody fetched it"}


def overdue(record: RequestRecord, limits: Limits, now: float) -> Overdue | None:
    """Why to give a request up: nobody asks after it, it runs too long, or it was long ago."""
    if record.ended_at is not None:
        return "old" if now - max(record.ended_at, record.asked_at) > limits.finished_s and not record.listeners else None
    if record.started_at is not None and now - record.started_at > limits.time_limit_s:
        return "time"
    if not record.listeners and now - record.asked_at > limits.lease_s:
        return "lease"
    return None


def surplus(ended: list[RequestRecord], limits: Limits) -> list[RequestRecord]:
    """Finished requests that go, the longest ago first, so that the rest is within bounds; the last one stays, however large it is."""
    oldest_first = sorted(ended, key=lambda record: record.ended_at or 0.0)
    finished_bytes, count = sum(held_bytes(record.picture) for record in oldest_first), len(oldest_first)
    surplus_records = []
    for record in oldest_first[:-1]:
        if count <= limits.max_finished and finished_bytes <= limits.max_finished_bytes:
            break
        surplus_records.append(record)
        finished_bytes, count = finished_bytes - held_bytes(record.picture), count - 1
    return surplus_records


def _kind(error: QuadError | None) -> str:
    """The class of an error, for the log: its message may quote what a client has sent."""
    return "" if error is None else f", {type(error).__name__}"


def _loop_time() -> float:
    return asyncio.get_running_loop().time()


class RequestRegistry:
    """All requests by id."""

    def __init__(self, limits: Limits, budget: Budget, clock: Callable[[], float] | None = None) -> None:
        self._limits, self._budget, self.clock = limits, budget, clock or _loop_time
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
