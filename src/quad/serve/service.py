"""State of one server, on which the operations of the API work: one resident pipeline, its scheduler, and the requests of all clients."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from anyio import CapacityLimiter, to_thread

from quad.core.errors import BusyError, StoppedError, mismatch
from quad.runtime.adapters.follow_store import InstalledAdapters
from quad.runtime.pipeline import QuadPipeline
from quad.runtime.provenance.png import PngOptions
from quad.runtime.queue.scheduler import Scheduler
from quad.serve.admission.admitter import Admitter
from quad.serve.connections.fetching import Fetching
from quad.serve.connections.places import Places
from quad.serve.decoding.decoder import Decoder
from quad.serve.error_response import HttpError
from quad.serve.limits import Budget, Limits
from quad.serve.registry import RequestRegistry
from quad.serve.studio.files import PageFile
from quad.serve.studio.heat_maps import HeatMap
from quad.serve.studio.reference_process import ReferenceProcess

_LOG = logging.getLogger(__name__)

T = TypeVar("T")
_THREADS = 2  # for reading packs, and what waits for the scheduler's locks
_ENCODERS = 4
MAINTENANCE_S, STORE_POLL_S = 0.25, 2.0


@dataclass(kw_only=True)
class Service:
    """Everything that one server knows.

    Args:
        installed: adapters that come through the device's store; None where there is no store.
        uploads: where packs that clients send are kept; None where none are taken.
        admission_command: of the process that admits a LoRA file; empty for quad's own.
        decoder_command: of the processes that decode pictures; empty for quad's own.
        png: what the files of pictures say of how they were made; None for nothing.
        page: URL path -> file, of a page over the API; None where there is none.
        report: `report.html`, or None.
        heat_maps: tables of adapters by adapters that were measured.
        reference: what makes full precision's pictures; None where nothing does.
    """

    pipe: QuadPipeline
    scheduler: Scheduler
    limits: Limits = field(default_factory=Limits)
    installed: InstalledAdapters | None = None
    uploads: Path | None = None
    decoder_command: Sequence[str] = ()
    admission_command: Sequence[str] = ()
    png: PngOptions | None = None
    page: Mapping[str, PageFile] | None = None
    report: Path | None = None
    heat_maps: Sequence[HeatMap] = ()
    reference: ReferenceProcess | None = None

    def __post_init__(self) -> None:
        self.budget = Budget(self.limits.max_held_bytes)
        self.places = Places(self.limits)
        self.decoder = Decoder(self.limits, self.decoder_command)
        self.admitter = Admitter(self.limits, self.admission_command)
        self.registry = RequestRegistry(self.limits, self.budget)
        self.uploaded: dict[str, Path] = {}
        self.previous: dict[str, Path] = {}  # versions before, as long as there is room
        self.sending = 0  # packs and LoRA files that are on their way
        self.answers: dict[int, int] = {}
        self.streams = 0
        self.stopping = False
        self.changing = asyncio.Lock()
        self.fetching = Fetching(self.limits.max_fetches)
        self._threads: dict[int, CapacityLimiter] = {}

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Run what takes long, or may wait for a lock, beside the event loop; a few at a time."""
        return await self._in_one_of(_THREADS, work)

    async def in_encoder(self, work: Callable[[], T]) -> T:
        """Encode a picture beside the event loop, and beside what is done `in_thread`."""
        return await self._in_one_of(_ENCODERS, work)

    async def _in_one_of(self, threads: int, work: Callable[[], T]) -> T:
        limiter = self._threads.get(threads) or self._threads.setdefault(threads, CapacityLimiter(threads))
        return await to_thread.run_sync(work, limiter=limiter)

    def require_running(self) -> None:
        """Raises:
        HttpError: 503, it takes no new work.
        """
        if self.stopping:
            raise HttpError(503, BusyError(mismatch("server", "one that takes requests", "one that is stopping", "start it again")))

    @contextmanager
    def stream(self) -> Iterator[None]:
        """A place among the open streams.

        Raises:
            HttpError: 503, there are too many.
        """
        most = self.limits.max_streams
        if self.streams >= most:
            raise HttpError(503, BusyError(mismatch("streams", f"fewer than {most} open", str(most), "ask again later")))
        self.streams += 1
        try:
            yield
        finally:
            self.streams -= 1

    def stop(self) -> None:
        """No new work, and what runs ends at its step."""
        if not self.stopping:
            _LOG.info("stopping, %d requests are cancelled", len(self.registry.live))
        self.stopping = True
        reason = StoppedError(mismatch("server", "one that goes on", "one that was stopped", "ask again when it runs"))
        for record in self.registry.live:
            self.registry.cancel(record, reason)

    def keep_previous(self, name: str, pack: Path | None) -> None:
        """Another version of an uploaded adapter runs now; the one before may be gone back to while there is room for it."""
        if (older := self.previous.pop(name, None)) is not None:
            older.unlink(missing_ok=True)
        if pack is not None:
            self.previous[name] = pack
        self.spare_places(self.sending - 1)

    def spare_places(self, n_sending: int) -> None:
        """Versions before take no place from uploads, these and so many that are on their way: the oldest go."""
        while self.previous and len(self.uploaded) + len(self.previous) + n_sending > self.limits.max_uploads:
            self.previous.pop(next(iter(self.previous))).unlink(missing_ok=True)

    def forget_upload(self, name: str) -> None:
        """Remove an uploaded adapter's files."""
        for packs in (self.uploaded, self.previous):
            if (pack := packs.pop(name, None)) is not None:
                pack.unlink(missing_ok=True)

    async def update_installed(self, work: Callable[[], None]) -> None:
        """Do what takes up installed adapters; what comes through the store is no client's any more, who may have sent one of its name."""
        async with self.changing:
            await self.in_thread(work)
            for name in self.uploaded.keys() & (self.installed.names if self.installed else ()):
                self.forget_upload(name)

    async def maintenance_loop(self) -> None:
        """Until cancelled: give up what is overdue, and take up what was installed, which may take long."""
        looking = asyncio.create_task(self._poll_store())
        try:
            while True:
                await asyncio.sleep(MAINTENANCE_S)
                self.registry.maintain()
                await self.decoder.end_idle()
        finally:
            looking.cancel()
            await self.decoder.close()
            await self.admitter.close()
            if self.reference is not None:
                await self.reference.close()

    async def _poll_store(self) -> None:
        while True:
            await asyncio.sleep(STORE_POLL_S)
            if self.installed is not None:
                await self.update_installed(self.installed.refresh)
