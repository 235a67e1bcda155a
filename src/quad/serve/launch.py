"""From a bundle to a server that answers: what `quad serve` does."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Timer
from types import FrameType
from typing import Any

from quad.core.storage.install_pointers import store_beside
from quad.runtime.adapters.follow_store import InstalledAdapters
from quad.runtime.pipeline import QuadPipeline
from quad.runtime.provenance.png import PngOptions
from quad.runtime.queue.scheduler import Scheduler, SchedulerOptions
from quad.serve.endpoint import Endpoint, remove_at_once
from quad.serve.guard import Credentials
from quad.serve.limits import Limits
from quad.serve.server import Moments, serve
from quad.serve.service import Service
from quad.serve.studio.files import PageFile
from quad.serve.studio.heat_maps import cross_table
from quad.serve.studio.reference_process import ReferenceProcess

_LOG = logging.getLogger(__name__)

_MOST_ENDING_S = 4.0
REPORT_FILE = "report.html"


@dataclass(frozen=True, kw_only=True)
class StudioOptions:
    """A page over the API.

    Args:
        page: URL path -> file.
        report: the directory with `report.html` and `ablate.json`, as far as they are there; None for none.
        reference_command: of the process that makes full precision's pictures; empty for none.
    """

    page: Mapping[str, PageFile]
    report: Path | None = None
    reference_command: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """A bundle to serve, and how.

    Args:
        store: the device's installed adapters; `BUNDLE.adapters` beside the bundle by default.
        allow_uploads: clients may send packs.
        adapter_budget_bytes: of memory for adapters, None for no bound.
        png: what the files of pictures say of how they were made; None for nothing.
        embeddings: textual inversions, a word or None for the file's own, and its file.
        studio: the page over the API; None for none.
    """

    bundle: Path
    engine: str = "auto"
    float_type: str = "auto"
    threads: int | None = None
    memory: str = "keep-all"
    store: Path | None = None
    allow_uploads: bool = False
    limits: Limits = field(default_factory=Limits)
    adapter_budget_bytes: int | None = None
    png: PngOptions | None = None
    embeddings: Sequence[tuple[str | None, Path]] = ()
    studio: StudioOptions | None = None


def launch(options: ServeOptions, listening: AbstractContextManager[Endpoint], announce: Callable[[Endpoint, Service], None]) -> None:
    """Serve a bundle at a place until SIGTERM or SIGINT; the place is left as it was found.

    Args:
        announce: called once calls are answered.

    Raises:
        QuadError: the place is taken, or the bundle cannot be opened.
    """
    ending = _Ending()
    with _stoppable(ending) as is_stopped, listening as ending.endpoint:
        endpoint = ending.endpoint
        with open_service(options, endpoint) as service:
            if not is_stopped():
                credentials = None if endpoint.token is None else Credentials(endpoint.port, endpoint.token)
                moments = Moments(ready=partial(_announce, announce, endpoint, service), stop=ending.begin)
                serve(service, endpoint.listener, credentials, moments)


def _announce(announce: Callable[[Endpoint, Service], None], endpoint: Endpoint, service: Service) -> None:
    announce(endpoint, service)
    _LOG.info("serving %s by %s on %s", service.pipe.bundle.manifest.name, service.pipe.engine, endpoint.stem)


@contextmanager
def open_service(options: ServeOptions, endpoint: Endpoint) -> Iterator[Service]:
    """Everything that a server works on, released when the block ends."""
    pipe = QuadPipeline.from_pretrained(
        options.bundle, options.engine, options.threads, memory=options.memory, adapter_budget_bytes=options.adapter_budget_bytes,
        float_type=options.float_type,
    )  # fmt: skip
    for word, path in options.embeddings:
        pipe.load_textual_inversion(path, word)
    scheduler = Scheduler(pipe, SchedulerOptions(max_queue=options.limits.max_queue))
    try:
        store, register = options.store or store_beside(options.bundle), partial(scheduler.register, mapped=True)
        installed = InstalledAdapters(store, register, pipe.switch.unregister)
        installed.open()  # one that is damaged is told of by /health, and keeps no other one from being served
        uploads = endpoint.uploads if options.allow_uploads else None
        if uploads is not None:
            uploads.mkdir(mode=0o700)
        yield Service(
            pipe=pipe, scheduler=scheduler, limits=options.limits, installed=installed, uploads=uploads, png=options.png,
            **_studio(options.studio),
        )  # fmt: skip
    finally:
        scheduler.close()


def _studio(options: StudioOptions | None) -> dict[str, Any]:
    """The parts of a service beside its API.

    Raises:
        InputError: the report's figures cannot be read.
    """
    if options is None:
        return {}
    place = options.report
    table = None if place is None else cross_table(place)
    report = None if place is None else place / REPORT_FILE
    return {
        "page": options.page,
        "report": report if report is not None and report.is_file() else None,
        "heat_maps": () if table is None else (table,),
        "reference": ReferenceProcess(options.reference_command) if options.reference_command else None,
    }


@contextmanager
def _stoppable(ending: _Ending) -> Iterator[Callable[[], bool]]:
    """SIGTERM and SIGINT end the block, until the server has them: at once, but where code of others lets no exception through, later.

    Yields:
        Whether one came.
    """
    received: list[int] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        ending.begin()
        sys.exit(0)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(received)
    finally:
        ending.done()
        for number, handler in before.items():
            signal.signal(number, handler)


class _Ending:
    """The end of a process that was told to stop: in good order, but soon, whatever a thread of it is waiting for."""

    endpoint: Endpoint | None = None
    _timer: Timer | None = None

    def begin(self) -> None:
        if self._timer is None:
            self._timer = Timer(_MOST_ENDING_S, self._leave)
            self._timer.daemon = True
            self._timer.start()

    def done(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _leave(self) -> None:
        if self.endpoint is not None:
            remove_at_once(self.endpoint)
        logging.shutdown()
        sys.stdout.flush()
        os._exit(0)
