"""What tests of the scheduler share: a pipeline that stops after each step until it is let on, a clock set by hand, pictures made alone."""

from __future__ import annotations

from pathlib import Path
from threading import Semaphore
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quad.runtime import PipelineOutput, QuadPipeline, Request
from quad.runtime.pipeline import StepCallback
from quad.runtime.queue.ticket import Ticket
from quad.runtime.stages import Prepared

Pixels = NDArray[np.uint8]
PATIENCE_S = 60.0  # a test that waits longer has failed


class HeldPipeline(QuadPipeline):
    """While `held`, each step of `finish` tells that it was reached, and waits for `let`."""

    held = False

    def finish(self, prepared: Prepared, callback_on_step_end: StepCallback | None = None) -> PipelineOutput:
        def stop_and_go(pipe: QuadPipeline, index: int, timestep: float, state: dict[str, Any]) -> None:
            if self.held:
                self._reached.release()
                assert self._go.acquire(timeout=PATIENCE_S)
            if callback_on_step_end is not None:
                callback_on_step_end(pipe, index, timestep, state)

        return super().finish(prepared, stop_and_go)

    def hold(self) -> None:
        """From now on."""
        self._reached, self._go, self.held = Semaphore(0), Semaphore(0), True

    def wait(self) -> None:
        """Until a step is reached."""
        assert self._reached.acquire(timeout=PATIENCE_S)

    def let(self, steps: int = 1) -> None:
        """So many steps pass."""
        self._go.release(steps)

    def free(self) -> None:
        """No step stops any more."""
        self.held = False
        self._go.release(1000)


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def pixels(output: Any) -> Pixels:
    return np.asarray(output.images[0])


def alone(bundle: Path, requests: list[Request], memory: str = "keep-all") -> list[Pixels]:
    """The pictures of a pipeline that nobody else uses."""
    pipe = QuadPipeline.from_pretrained(bundle, engine="ort", threads=1, memory=memory)
    return [pixels(pipe.finish(pipe.prepare(request))) for request in requests]


def ended(ticket: Ticket) -> list[Any]:
    """All its events, the last of them the state that it ended in."""
    return list(ticket.events())
