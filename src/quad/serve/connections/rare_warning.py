"""Warnings of things that may happen a thousand times a second, told now and then."""

from __future__ import annotations

import logging
import time

_EVERY_S = 10.0


class RareWarning:
    """A warning of the log, at most one in ten seconds; it counts those that were not told."""

    def __init__(self, log: logging.Logger) -> None:
        self._log, self._told_at, self._untold = log, -_EVERY_S, 0

    def __call__(self, text: str, *facts: object) -> None:
        now = time.monotonic()
        if now - self._told_at < _EVERY_S:
            self._untold += 1
            return
        more = f" ({self._untold} more since the last line)" if self._untold else ""
        self._told_at, self._untold = now, 0
        self._log.warning(text + more, *facts)
