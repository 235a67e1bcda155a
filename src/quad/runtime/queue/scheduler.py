"""Requests of several clients on one pipeline: who is next, what is made ready meanwhile, and how a request ends.

One picture is denoised at a time, on all threads of the budget; more at once would only slow each down. While it is, the next one's
adapter is read and, where the memory plan keeps all graphs, its text and pictures are encoded between two steps. Every picture is the one
that the pipeline makes alone, bit for bit. Meanwhile the pipeline belongs to the scheduler: call it through requests only.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Condition, Thread
from types import TracebackType
from typing import Any

from quad.core.errors import BusyError, QuadError, mismatch
from quad.runtime.pipeline import QuadPipeline
from quad.runtime.queue.job import Job, Stopped, check_terms, told
from quad.runtime.queue.metrics import SchedulerMetrics, Tally
from quad.runtime.queue.ordering import Key, Moment, Waiting, adapter_key, choose, expired, without
from quad.runtime.queue.ticket import State, StepEvent, Ticket
from quad.runtime.request import Request
from quad.runtime.stages import PipelineOutput, Prepared

_PACE_SHARE = 0.2  # of the latest picture in the mean of all
_MOST_AHEAD = 3  # requests that were next once and may hold adapters: the running one, the next, and one that was passed meanwhile


@dataclass(frozen=True)
class SchedulerOptions:
    """Args:
    max_queue: requests that may wait; one more is refused.
    most_overtaken: how often a request may be passed by later ones, see `quad.runtime.queue.ordering`.
    clock: seconds, never backwards.
    """

    max_queue: int = 64
    most_overtaken: int = 8
    clock: Callable[[], float] = time.monotonic


class Scheduler:
    """One line of requests, and the thread that works it off."""

    def __init__(self, pipe: QuadPipeline, options: SchedulerOptions | None = None) -> None:
        self._pipe, self._options = pipe, options or SchedulerOptions()
        self._changed = Condition()  # guards everything below
        self._line: tuple[Waiting, ...] = ()
        self._jobs: dict[int, Job] = {}
        self._running: Job | None = None
        self._bound: Key | None = None
        self._count, self._pace_s, self._closing = 0, 0.0, False
        self._tally = Tally()
        self._preparer = ThreadPoolExecutor(1, "quad-prepare")
        self._worker = Thread(target=self._work, name="quad-scheduler", daemon=True)
        self._worker.start()

    def __enter__(self) -> Scheduler:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close(drain=error is None)

    def submit(self, request: Request, *, priority: int = 0, deadline_s: float | None = None, client: str = "") -> Ticket:
        """Put a request into the line.

        Args:
            priority: a higher one goes first.
            deadline_s: seconds from now by which the picture is wanted; a request that cannot keep it ends as `expired`.
            client: whose it is, for `cancel_client`.

        Raises:
            UsageError: an unknown task or adapter, a number out of its range. BusyError: the line is full, or the scheduler closed.
        """
        check_terms(priority, deadline_s)
        resolved = self._pipe.switch.resolve(request)
        self._expire()
        with self._changed:
            self._check_room()
            number, self._count, now = self._count, self._count + 1, self._options.clock()
            due = None if deadline_s is None else now + deadline_s
            job = Job(Ticket(number, client, self._cancel), request, resolved, due, now)
            self._jobs[number] = job
            self._line += (Waiting(number, adapter_key(resolved.weights), priority, due),)
            self._changed.notify_all()
        return job.ticket

    def cancel_client(self, client: str) -> int:
        """Cancel all of a client's requests; returns how many there were to cancel."""
        with self._changed:
            tickets = [job.ticket for job in self._jobs.values() if job.ticket.client == client]
        return sum(ticket.cancel() for ticket in tickets)

    def register(self, path: str | Path, name: str | None = None) -> str:
        """Register or replace an adapter; a picture that is prepared or running keeps the one that it began with.

        Returns:
            What it is called.

        Raises:
            CompatibilityError: packed for another bundle. VerificationError: changed, or no adapter.
        """
        return self._pipe.switch.register(path, name)

    def metrics(self) -> SchedulerMetrics:
        """The figures of this moment."""
        with self._changed:
            return self._tally.metrics(len(self._line), int(self._running is not None))

    def close(self, *, drain: bool = False) -> None:
        """Take no more requests and end: those in the line and at work are cancelled, or with `drain` finished first."""
        with self._changed:
            self._closing = True
            tickets = [] if drain else [job.ticket for job in self._jobs.values()]
            self._changed.notify_all()
        for ticket in tickets:
            ticket.cancel()
        self._worker.join()
        self._preparer.shutdown()

    def _check_room(self) -> None:
        if self._closing:
            raise BusyError("scheduler: expected an open one, found it closing; ask another one")
        if len(self._line) >= self._options.max_queue:
            self._tally.refused += 1
            raise BusyError(mismatch("scheduler", f"at most {self._options.max_queue} requests in line", "a full line", "ask again later"))

    def _cancel(self, ticket: Ticket) -> bool:
        with self._changed:
            job = self._jobs.get(ticket.id)
            if job is None:
                return False
            job.stop = "cancelled"
            if job is self._running:
                return True
            self._leave(job)
        self._finish(job, "cancelled")
        return True

    def _work(self) -> None:
        while self._serve(self._next()):
            pass

    def _next(self) -> Job | None:
        """The job to serve, once there is one; None when there will be no more."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._line or self._closing)
            self._expire()
            with self._changed:
                if self._line:
                    return self._begin()
                if self._closing:
                    return None

    def _begin(self) -> Job:
        waiting = self._choice()
        self._line = without(self._line, waiting)
        job, tally = self._jobs[waiting.number], self._tally
        tally.most_overtaken = max(tally.most_overtaken, *(one.overtaken for one in self._line), 0)
        tally.switches += waiting.key != self._bound
        tally.ahead += job.ahead is not None
        tally.waited_s += self._options.clock() - job.arrived_s
        self._running, self._bound, job.seen = job, waiting.key, True
        return job

    def _serve(self, job: Job | None) -> bool:
        """One picture, whatever becomes of it; whether there was one to make. Nothing of it is held when this returns."""
        if job is None:
            return False
        start, output, failure = self._options.clock(), None, None
        state: State = "done"
        job.ticket.begin()
        try:
            job.pin(self._pipe.switch.pinned)
            prepared = self._pipe.prepare(job.request) if job.ahead is None else job.ahead.result()
            output = self._pipe.finish(prepared, self._on_step(job, prepared))
        except Stopped as stopped:
            state = stopped.state
        except BaseException as error:  # of this request; the next one must not suffer from it
            state, failure = "failed", told(job.ticket.id, error)
        with self._changed:
            took = self._options.clock() - start
            self._tally.worked_s += took
            if state == "done":
                self._pace_s += (took - self._pace_s) * (_PACE_SHARE if self._pace_s else 1.0)
            self._running = None
            state = job.stop or state  # who was told that it is cancelled gets no picture
            self._leave(job)
        self._finish(job, state, output if state == "done" else None, failure if state == "failed" else None)
        return True

    def _on_step(self, job: Job, prepared: Prepared) -> Callable[..., None]:
        def on_step(_pipe: Any, index: int, timestep: float, _state: Any) -> None:
            job.ticket.step(StepEvent(index, prepared.sampling.calls, timestep))
            self._look_ahead()
            job.check(index, prepared.sampling.calls, self._options.clock())

        job.check(-1, prepared.sampling.calls, self._options.clock())
        return on_step

    def _look_ahead(self) -> None:
        """Have the next request's adapter read and, where graphs stay, the request prepared."""
        self._expire()
        with self._changed:
            job = self._jobs[self._choice().number] if self._line else None
            if job is not None and not job.seen and sum(one.seen for one in self._jobs.values()) < _MOST_AHEAD:
                job.seen = True
                with suppress(QuadError):  # it is told when the request's turn comes
                    job.pin(self._pipe.switch.pinned)
                    self._hurry(job)

    def _choice(self) -> Waiting:
        moment = Moment(self._options.clock(), self._bound, self._pace_s)
        return choose(self._line, moment, self._options.most_overtaken)

    def _hurry(self, job: Job) -> None:
        for name in job.resolved.weights:
            self._pipe.switch.preload(name)
        if self._pipe.memory == "keep-all":
            job.ahead = self._preparer.submit(self._pipe.prepare, job.request)

    def _expire(self) -> None:
        """End those in the line whose time is over."""
        with self._changed:
            late = [self._jobs[one.number] for one in expired(self._line, self._options.clock())]
            for job in late:
                self._leave(job)
        for job in late:
            self._finish(job, "expired")

    def _leave(self, job: Job) -> None:
        self._jobs.pop(job.ticket.id, None)
        self._line = tuple(one for one in self._line if one.number != job.ticket.id)
        job.unpin()

    def _finish(self, job: Job, state: State, output: PipelineOutput | None = None, failure: Exception | None = None) -> None:
        with self._changed:
            self._tally.ended[state] += 1
        if job.ahead is not None:
            job.ahead.cancel()
        job.ticket.end(state, output, failure)
