"""The server's event loop: its clock stands still while the process does, and what it lacks is a line now and then."""

from __future__ import annotations

import asyncio
import errno
import logging
import selectors
import time
from typing import Any

from quad.serve.connections.rare_warning import RareWarning

_LOG = logging.getLogger(__name__)

_STOPPED_S = 0.5  # without a look at the clock: the process did not run, for a signal or for want of a processor
_LACKING = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class RunningClock:
    """Seconds in which the process ran; used on one thread.

    While an app freezer or a debugger stops it, its clients' calls wait unread, so that time must not end what they ask after.
    """

    def __init__(self) -> None:
        self._seen, self._stopped_s = time.monotonic(), 0.0

    def now(self, waited_s: float = 0.0) -> float:
        """Seconds, never backwards.

        Args:
            waited_s: of the time since the last call it was to wait so much.
        """
        now = time.monotonic()
        unseen_s = now - self._seen - waited_s
        if unseen_s > _STOPPED_S:
            self._stopped_s += unseen_s
        self._seen = now
        return now - self._stopped_s


class _Selector(selectors.DefaultSelector):
    def __init__(self, clock: RunningClock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._clock.now()
        try:
            return super().select(timeout)
        finally:
            self._clock.now(float("inf") if timeout is None else max(0.0, timeout))


class ServerLoop(asyncio.SelectorEventLoop):
    """Timers and leases wait while the process is stopped. Calls that came meanwhile are read before the time goes on."""

    def __init__(self) -> None:
        self._clock = RunningClock()
        self._lacking = RareWarning(_LOG)
        super().__init__(_Selector(self._clock))

    def time(self) -> float:
        return self._clock.now()

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, OSError) and error.errno in _LACKING:  # while it accepts a connection, which waits
            self._lacking("connections wait: %s", error.strerror)
        else:
            super().default_exception_handler(context)
