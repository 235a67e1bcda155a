"""Requests of several clients on one pipeline: who is next, what is made ready meanwhile, and how a request ends.

One picture is denoised at a time, on all threads of the budget; more at once would only slow each down. While it is, the next one's
adapter is read and laid out for the U-Net, where that stays in memory, so that the switch to it is a choice; and where all graphs stay, its
text and pictures are encoded between two steps. Every picture is the one that the pipeline makes alone, bit for bit. Meanwhile the pipeline
belongs to the scheduler: call it through requests only.
"""

from __future__ import annotations

import logging
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
from quad.core.slots import UNET
from quad.runtime.arguments import flag, whole_number
from quad.runtime.engines.graph import PLANS
from quad.runtime.pipeline import QuadPipeline
from quad.runtime.preview import bundle_preview
from quad.runtime.queue.metrics import SchedulerCounters, SchedulerMetrics
from quad.runtime.queue.ordering import Key, Moment, Waiting, adapter_key, choose, expired, without
from quad.runtime.queue.queued_request import QueuedRequest, Stopped, as_exception, check_terms
from quad.runtime.queue.ticket import PreviewEvent, State, StepEvent, Ticket
from quad.runtime.request import Request
from quad.runtime.stages import PipelineOutput, Prepared

_LOG = logging.getLogger(__name__)

_PACE_SHARE = 0.2  # of the latest picture in the mean of all
_MOST_AHEAD = 3  # requests that were next once and may pin adapters: the running one, the next, and one that was passed meanwhile


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

    def __post_init__(self) -> None:
        """Refuse what nothing can be compared with, before a thread would.

        Raises:
            UsageError: a number is none.
        """
        whole_number("max_queue", self.max_queue)
        whole_number("most_overtaken", self.most_overtaken)


class Scheduler:
    """One queue of requests, and the thread that works it off."""

    def __init__(self, pipe: QuadPipeline, options: SchedulerOptions | None = None) -> None:
        self._pipe, self._options = pipe, options or SchedulerOptions()
        self._changed = Condition()  # guards everything below
        self._queue: tuple[Waiting, ...] = ()
        self._requests: dict[int, QueuedRequest] = {}
        self._running: QueuedRequest | None = None
        self._bound: Key | None = None
        self._count, self._pace_s, self._closing = 0, 0.0, False
        self._counters = SchedulerCounters()
        self._preparer = ThreadPoolExecutor(1, "quad-prepare")
        self._worker = Thread(target=self._work, name="quad-scheduler", daemon=True)
        self._worker.start()

    def __enter__(self) -> Scheduler:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close(drain=error is None)

    def submit(
        self, request: Request, *, priority: int = 0, deadline_s: float | None = None, client: str = "", previews: bool = False
    ) -> Ticket:
        """Put a request into the queue.

        Args:
            priority: a higher one goes first.
            deadline_s: seconds from now by which the picture is wanted; a request that cannot keep it ends as `expired`.
            client: whose it is, for `cancel_client`.
            previews: keep a coarse look at it in `Ticket.preview`, where the bundle has colours for its latents.

        Raises:
            UsageError: an unknown task or adapter, a number out of its range. BusyError: the queue is full, or the scheduler closed.
        """
        check_terms(priority, deadline_s)
        flag("previews", previews)
        resolved = self._pipe.switch.resolve(request)
        self._expire()
        with self._changed:
            self._check_room()
            number, self._count, now = self._count, self._count + 1, self._options.clock()
            due = None if deadline_s is None else now + deadline_s
            ticket = Ticket(number, client, self._cancel)
            queued = QueuedRequest(ticket=ticket, request=request, resolved=resolved, deadline_s=due, arrived_s=now, previews=previews)
            self._requests[number] = queued
            self._queue += (Waiting(number=number, key=adapter_key(resolved.weights), priority=priority, deadline_s=due),)
            self._changed.notify_all()
        _LOG.debug("request %d: queued, task %s, priority %d", number, resolved.task, priority)
        return ticket

    def cancel_client(self, client: str) -> int:
        """Cancel all of a client's requests; returns how many there were to cancel."""
        with self._changed:
            tickets = [queued.ticket for queued in self._requests.values() if queued.ticket.client == client]
        return sum(ticket.cancel() for ticket in tickets)

    def register(self, path: str | Path, name: str | None = None, mapped: bool = False) -> str:
        """Register or replace an adapter; a picture that is prepared or running keeps the one that it began with.

        Args:
            mapped: it is the device's own, to which nobody writes, and may be mapped.

        Returns:
            What it is called.

        Raises:
            CompatibilityError: packed for another bundle. VerificationError: changed, or no adapter.
        """
        return self._pipe.switch.register(path, name, mapped=mapped)

    def metrics(self) -> SchedulerMetrics:
        """The figures of this moment."""
        with self._changed:
            return self._counters.metrics(len(self._queue), int(self._running is not None))

    def close(self, *, drain: bool = False) -> None:
        """Take no more requests and end: those in the queue and at work are cancelled, or with `drain` finished first."""
        with self._changed:
            self._closing = True
            tickets = [] if drain else [queued.ticket for queued in self._requests.values()]
            self._changed.notify_all()
        for ticket in tickets:
            ticket.cancel()
        self._worker.join()
        self._preparer.shutdown()

    def _check_room(self) -> None:
        if self._closing:
            raise BusyError("scheduler: expected an open one, found it closing; ask another one")
        if len(self._queue) >= self._options.max_queue:
            self._counters.refused += 1
            _LOG.warning("scheduler: a request refused, %d are waiting", len(self._queue))
            raise BusyError(mismatch("scheduler", f"at most {self._options.max_queue} requests in line", "a full line", "ask again later"))

    def _cancel(self, ticket: Ticket) -> bool:
        with self._changed:
            queued = self._requests.get(ticket.id)
            if queued is None:
                return False
            queued.stop = "cancelled"
            if queued is self._running:
                return True
            self._leave(queued)
        self._finish(queued, "cancelled")
        return True

    def _work(self) -> None:
        while self._serve(self._next()):
            pass

    def _next(self) -> QueuedRequest | None:
        """The queued to serve, once there is one; None when there will be no more."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closing)
            self._expire()
            with self._changed:
                if self._queue:
                    return self._begin()
                if self._closing:
                    return None

    def _begin(self) -> QueuedRequest:
        waiting = self._choice()
        self._queue = without(self._queue, waiting)
        queued, counters = self._requests[waiting.number], self._counters
        counters.most_overtaken = max(counters.most_overtaken, *(waiting.overtaken for waiting in self._queue), 0)
        counters.switches += waiting.key != self._bound
        counters.ahead += queued.ahead is not None
        counters.waited_s += self._options.clock() - queued.arrived_s
        self._running, self._bound, queued.prefetched = queued, waiting.key, True
        return queued

    def _serve(self, queued: QueuedRequest | None) -> bool:
        """One picture, whatever becomes of it; whether there was one to make. Nothing of it is held when this returns."""
        if queued is None:
            return False
        start, output, failure = self._options.clock(), None, None
        state: State = "done"
        queued.ticket.begin()
        # The picture: prepared now, or ahead of its turn; then denoised and decoded.
        try:
            queued.pin(self._pipe.switch.pinned)
            prepared = self._pipe.prepare(queued.request) if queued.ahead is None else queued.ahead.result()
            output = self._pipe.finish(prepared, self._on_step(queued, prepared))
        except Stopped as stopped:
            state = stopped.state
        except BaseException as error:  # of this request; the next one must not suffer from it
            state, failure = "failed", as_exception(queued.ticket.id, error)
        # The books: how long it took, and that it waits no more.
        with self._changed:
            took = self._options.clock() - start
            self._counters.worked_s += took
            if state == "done":
                self._pace_s += (took - self._pace_s) * (_PACE_SHARE if self._pace_s else 1.0)
            self._running = None
            state = queued.stop or state  # who was told that it is cancelled gets no picture
            self._leave(queued)
        # Its client: the last step, because a callback may submit the next request.
        self._finish(queued, state, output if state == "done" else None, failure if state == "failed" else None)
        return True

    def _on_step(self, queued: QueuedRequest, prepared: Prepared) -> Callable[..., None]:
        def on_step(_pipe: Any, index: int, timestep: float, state: Any) -> None:
            if queued.previews:
                with suppress(QuadError):  # an older bundle has no colours
                    queued.ticket.preview = PreviewEvent(index, bundle_preview(self._pipe.bundle.manifest, state["denoised"], 1))
            queued.ticket.step(StepEvent(index, prepared.sampling.calls, timestep))
            self._prefetch_next()
            queued.check(index, prepared.sampling.calls, self._options.clock())

        queued.check(-1, prepared.sampling.calls, self._options.clock())
        return on_step

    def _prefetch_next(self) -> None:
        """Have the next request's adapter read and, where graphs stay, the request prepared."""
        self._expire()
        with self._changed:
            queued = self._requests[self._choice().number] if self._queue else None
            if queued is not None and not queued.prefetched and sum(other.prefetched for other in self._requests.values()) < _MOST_AHEAD:
                queued.prefetched = True
                with suppress(QuadError):  # it is told when the request's turn comes
                    queued.pin(self._pipe.switch.pinned)
                    self._prefetch(queued)

    def _choice(self) -> Waiting:
        moment = Moment(self._options.clock(), self._bound, self._pace_s)
        return choose(self._queue, moment, self._options.most_overtaken)

    def _prefetch(self, queued: QueuedRequest) -> None:
        for name in queued.resolved.weights:
            self._pipe.switch.preload(name)
        if self._pipe.memory == "keep-all":
            queued.ahead = self._preparer.submit(self._pipe.prepare_ahead, queued.request)
        elif UNET in PLANS[self._pipe.memory]:
            self._preparer.submit(self._pipe.lay_out, queued.request)

    def _expire(self) -> None:
        """End those in the queue whose time is over."""
        with self._changed:
            late = [self._requests[waiting.number] for waiting in expired(self._queue, self._options.clock())]
            for queued in late:
                self._leave(queued)
        for queued in late:
            self._finish(queued, "expired")

    def _leave(self, queued: QueuedRequest) -> None:
        self._requests.pop(queued.ticket.id, None)
        self._queue = tuple(waiting for waiting in self._queue if waiting.number != queued.ticket.id)
        queued.unpin()

    def _finish(self, queued: QueuedRequest, state: State, output: PipelineOutput | None = None, failure: Exception | None = None) -> None:
        with self._changed:
            self._counters.ended[state] += 1
        if queued.ahead is not None:
            queued.ahead.cancel()
        _LOG.log(logging.DEBUG if state == "done" else logging.INFO, "request %d: %s", queued.ticket.id, state)
        queued.ticket.end(state, output, failure)
