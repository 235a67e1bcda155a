"""Warnings of things that may happen a thousand times a second, logged now and then."""

from __future__ import annotations

import logging
import time

_EVERY_S = 10.0


class RareWarning:
    """A warning of the log, at most one in ten seconds; it counts those in between."""

    def __init__(self, log: logging.Logger) -> None:
        self._log, self._last_at, self._suppressed = log, -_EVERY_S, 0

    def __call__(self, text: str, *facts: object) -> None:
        now = time.monotonic()
        if now - self._last_at < _EVERY_S:
            self._suppressed += 1
            return
        more = f" ({self._suppressed} more since the last line)" if self._suppressed else ""
        self._last_at, self._suppressed = now, 0
        self._log.warning(text + more, *facts)
