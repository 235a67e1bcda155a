"""From a bundle to a server that answers: what `quad serve` does."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from quad.core.storage.install_pointers import store_beside
from quad.runtime.adapters.follow_store import InstalledAdapters
from quad.runtime.pipeline import QuadPipeline
from quad.runtime.queue.scheduler import Scheduler, SchedulerOptions
from quad.serve.endpoint import Place
from quad.serve.guard import Door
from quad.serve.limits import Limits
from quad.serve.server import serve
from quad.serve.service import Service


@dataclass(frozen=True)
class Hosted:
    """What is served, and how.

    Args:
        store: the device's installed adapters; `BUNDLE.adapters` beside the bundle by default.
        allow_uploads: clients may send packs.
        adapter_budget_bytes: of memory for adapters, None for no bound.
    """

    bundle: Path
    engine: str = "auto"
    threads: int | None = None
    memory: str = "keep-all"
    store: Path | None = None
    allow_uploads: bool = False
    limits: Limits = field(default_factory=Limits)
    adapter_budget_bytes: int | None = None


def host(hosted: Hosted, where: AbstractContextManager[Place], announce: Callable[[Place, Service], None]) -> None:
    """Serve a bundle at a place until SIGTERM or SIGINT; the place is left as it was found.

    Args:
        announce: called once calls are answered.

    Raises:
        QuadError: the place is taken, or the bundle cannot be opened.
    """
    with _stoppable() as is_stopped, where as place, opened(hosted, place) as service:
        if not is_stopped():
            announce(place, service)
            serve(service, place.listener, None if place.token is None else Door(place.port, place.token))


@contextmanager
def opened(hosted: Hosted, place: Place) -> Iterator[Service]:
    """Everything that a server works on, released when the block ends."""
    pipe = QuadPipeline.from_pretrained(
        hosted.bundle, hosted.engine, hosted.threads, memory=hosted.memory, adapter_budget_bytes=hosted.adapter_budget_bytes
    )
    scheduler = Scheduler(pipe, SchedulerOptions(max_queue=hosted.limits.max_queue))
    try:
        installed = InstalledAdapters(hosted.store or store_beside(hosted.bundle), scheduler.register, pipe.switch.unregister)
        installed.refresh()  # one that is damaged is told of by /health, and keeps no other one from being served
        uploads = place.uploads if hosted.allow_uploads else None
        if uploads is not None:
            uploads.mkdir(mode=0o700)
        yield Service(pipe, scheduler, hosted.limits, installed, uploads)
    finally:
        scheduler.close()


@contextmanager
def _stoppable() -> Iterator[Callable[[], bool]]:
    """SIGTERM and SIGINT end the block, until the server has them: at once, but where code of others lets no exception through, later.

    Yields:
        Whether one came.
    """
    came: list[int] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        sys.exit(0)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
