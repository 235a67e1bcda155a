"""One request as the server knows it; used on the event loop's thread alone."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import msgspec
from PIL import Image

from quad.core.errors import QuadError
from quad.runtime.provenance.facts import PictureFacts
from quad.runtime.queue.ticket import Ticket
from quad.runtime.stages import PipelineOutput
from quad.serve.api import RequestState, State, Step, error_body


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
    def facts(self) -> PictureFacts | None:
        """Facts for the picture's file."""
        return self.outcome.facts[0] if isinstance(self.outcome, PipelineOutput) and self.outcome.facts else None

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
            state,
            task=out.task,
            adapters=out.adapters,
            seed=out.seed,
            notes=out.notes,
            timings_ms=out.timings_ms,
            sampler=out.sampler,
            guidance=out.guidance,
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
