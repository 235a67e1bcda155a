"""The handle of a request that a client holds: its state, its progress, its picture."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from threading import Condition
from typing import Literal, TypeVar

from PIL.Image import Image

from quad.core.errors import StoppedError
from quad.runtime.stages import PipelineOutput

State = Literal["queued", "running", "done", "failed", "cancelled", "expired"]
ENDED = ("done", "failed", "cancelled", "expired")
_LOG = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class PreviewEvent:
    """A coarse look at the picture after a step, one pixel for each of its latent's."""

    index: int
    picture: Image


@dataclass(frozen=True)
class StepEvent:
    """A step that was taken: its index among `total`, from 0, and its timestep."""

    index: int
    total: int
    timestep: float


class Ticket:
    """One request's; for any number of threads."""

    def __init__(self, number: int, client: str, cancel: Callable[[Ticket], bool]) -> None:
        self.id, self.client = number, client
        self.preview: PreviewEvent | None = None  # the latest, where previews are wanted
        self._cancel = cancel
        self._changed = Condition()
        self._state: State = "queued"
        self._events: list[StepEvent] = []
        self._output: PipelineOutput | None = None
        self._error: Exception | None = None
        self._step_callbacks: list[Callable[[StepEvent], object]] = []
        self._done_callbacks: list[Callable[[Ticket], object]] = []

    @property
    def state(self) -> State:
        return self._state

    def result(self, timeout: float | None = None) -> PipelineOutput:
        """The picture, once it is there.

        Args:
            timeout: seconds to wait, None for as long as it takes.

        Raises:
            StoppedError: it was cancelled, or its deadline could not be kept.
            TimeoutError: not within `timeout`; the request goes on.
            QuadError: what a call of the pipeline raises.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._state in ENDED, timeout):
                raise TimeoutError(f"request {self.id}: {self._state} after {timeout:g} s")
        if self._error is not None:
            raise self._error
        if self._output is None:
            raise StoppedError(f"request {self.id}: expected a picture, found it {self._state}; ask for it again")
        return self._output

    def cancel(self) -> bool:
        """Give the request up, at its next step where it runs.

        Returns:
            Whether it ends as `cancelled`; False where it has ended already.
        """
        return self._cancel(self)

    def events(self) -> Iterator[StepEvent | State]:
        """Its steps from the first on, as they come, and at last the state that it ended in."""
        count = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda count=count: len(self._events) > count or self._state in ENDED)  # type: ignore[misc]
                fresh, state = self._events[count:], self._state
            yield from fresh
            count += len(fresh)
            if state in ENDED:
                yield state
                return

    def add_step_callback(self, callback: Callable[[StepEvent], object]) -> None:
        """Call back at every step, from the first on: steps that were taken already at once, later ones on the thread that takes them.

        Each step comes once, in order, and before the ticket's end. The callback must not wait; what it raises is logged.
        """
        with self._changed:  # held while the past is told, so that the next step waits its turn
            self._step_callbacks.append(callback)
            for event in self._events:
                self._call(callback, event)

    def add_done_callback(self, callback: Callable[[Ticket], object]) -> None:
        """Call back once it has ended, on the thread that ends it; at once where it has. What the callback raises is logged."""
        with self._changed:
            if self._state not in ENDED:
                self._done_callbacks.append(callback)
                return
        self._call(callback, self)

    def begin(self) -> None:
        """For the scheduler: it runs."""
        with self._changed:
            self._state = "running"
            self._changed.notify_all()

    def step(self, event: StepEvent) -> None:
        """For the scheduler: a step was taken."""
        with self._changed:
            self._events.append(event)
            callbacks = list(self._step_callbacks)
            self._changed.notify_all()
        for callback in callbacks:
            self._call(callback, event)

    def end(self, state: State, output: PipelineOutput | None = None, error: Exception | None = None) -> None:
        """For the scheduler: it has ended, once."""
        with self._changed:
            self._state, self._output, self._error = state, output, error
            callbacks, self._done_callbacks, self._step_callbacks = self._done_callbacks, [], []
            self._changed.notify_all()
        for callback in callbacks:
            self._call(callback, self)

    def _call(self, callback: Callable[[T], object], argument: T) -> None:
        try:
            callback(argument)
        except BaseException:  # it is the client's, and must not stop others' requests, even where it would leave its thread
            _LOG.exception("request %s: its callback failed", self.id)
