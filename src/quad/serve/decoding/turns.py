"""Turns at decoders: a few at once, one a caller, and nobody keeps his while others wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass


@dataclass(frozen=True, eq=False)
class _Turn:
    since: float
    limit: asyncio.Timeout


class Turns:
    """`most` turns at once.

    Args:
        most: of all callers together; one caller has one.
        share_s: so long may a turn last while others wait for one; infinite, where it may last.
    """

    def __init__(self, most: int, share_s: float = float("inf")) -> None:
        self._most, self._share_s = most, share_s
        self._turns: dict[Hashable, _Turn] = {}  # the oldest first
        self._change = asyncio.Event()
        self.jobs = 0
        self.used_at = 0.0

    @asynccontextmanager
    async def turn(self, caller: Hashable) -> AsyncIterator[None]:
        """Wait for a turn and have it while the block runs.

        Raises:
            TimeoutError: others waited for it, and it had its share.
        """
        loop = asyncio.get_running_loop()
        self.jobs += 1
        try:
            while caller in self._turns or len(self._turns) >= self._most:
                await self._wait(caller)
            async with asyncio.timeout(None) as limit:
                self._turns[caller] = _Turn(loop.time(), limit)
                try:
                    yield
                finally:
                    del self._turns[caller]
                    self._change.set()
                    self._change = asyncio.Event()
        finally:
            self.jobs -= 1
            self.used_at = loop.time()

    async def _wait(self, caller: Hashable) -> None:
        """Until something changes. Where it is only that all turns are taken, the oldest one ends when it has had its share."""
        oldest = next((turn for turn in self._turns.values() if turn.limit.when() is None), None)
        if caller in self._turns or oldest is None or self._share_s == float("inf"):
            await self._change.wait()
            return
        with suppress(TimeoutError):
            async with asyncio.timeout_at(oldest.since + self._share_s):
                await self._change.wait()
                return
        if oldest in self._turns.values():
            oldest.limit.reschedule(asyncio.get_running_loop().time())
