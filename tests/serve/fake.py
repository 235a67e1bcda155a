"""A scheduler that does nothing until a test says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Condition

from PIL import Image

from quad.core.errors import QuadError, StoppedError
from quad.runtime.pipeline import QuadPipeline
from quad.runtime.queue.ticket import StepEvent
from quad.runtime.request import Request
from quad.runtime.stages import PipelineOutput
from quad.serve.api import ENDED, State


def an_output(side: int = 16) -> PipelineOutput:
    picture = Image.new("RGB", (side, side), "red")
    return PipelineOutput(images=[picture], notes=("a note",), timings_ms={"total": 1.0}, task="text-to-image", adapters={}, seed=7)


class FakeTicket:
    """One request in a test's hand."""

    def __init__(self, number: int, request: Request, client: str) -> None:
        self.id, self.request, self.client = number, request, client
        self.state: State = "queued"
        self.preview = None
        self.steps: list[StepEvent] = []
        self.outcome: PipelineOutput | QuadError | None = None
        self._changed = Condition()
        self._on_step: list[Callable[[StepEvent], object]] = []
        self._on_end: list[Callable[[FakeTicket], object]] = []

    def step(self, total: int = 4) -> None:
        with self._changed:
            self.state = "running"
            self.steps.append(StepEvent(len(self.steps), total, 100.0))
            self._changed.notify_all()
            for callback in self._on_step:
                callback(self.steps[-1])

    def end(self, state: State, outcome: PipelineOutput | QuadError) -> None:
        with self._changed:
            if self.state not in ENDED:
                self.state, self.outcome = state, outcome
                self._changed.notify_all()
                for callback in self._on_end:
                    callback(self)

    def cancel(self) -> bool:
        self.end("cancelled", StoppedError("request: expected to go on, found it cancelled; ask again"))
        return self.state == "cancelled"

    def add_step_callback(self, callback: Callable[[StepEvent], object]) -> None:
        with self._changed:
            self._on_step.append(callback)
            for event in self.steps:
                callback(event)

    def add_done_callback(self, callback: Callable[[FakeTicket], object]) -> None:
        with self._changed:
            self._on_end.append(callback)
            if self.state in ENDED:
                callback(self)

    def result(self, timeout: float | None = None) -> PipelineOutput:
        with self._changed:
            self._changed.wait_for(lambda: self.state in ENDED, timeout)
        if isinstance(self.outcome, PipelineOutput):
            return self.outcome
        raise self.outcome or TimeoutError

    def wait_until(self, state: State) -> None:
        """For what the server does on its own."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.state == state, timeout=30), self.state


class FakeMetrics:
    """Nothing to tell."""


class FakeScheduler:
    """Takes everything, runs nothing; adapters go to the pipeline."""

    def __init__(self, pipe: QuadPipeline) -> None:
        self._pipe = pipe
        self.tickets: list[FakeTicket] = []
        self.asked: list[dict[str, object]] = []

    def submit(self, request: Request, **how: object) -> FakeTicket:
        self.tickets.append(FakeTicket(len(self.tickets), request, str(how["client"])))
        self.asked.append(how)
        return self.tickets[-1]

    def register(self, path: Path, name: str | None = None) -> str:
        return self._pipe.switch.register(path, name)

    def close(self, *, drain: bool = False) -> None:
        for ticket in self.tickets:
            ticket.cancel()
