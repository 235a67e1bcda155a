"""Places for pictures on their way out: a few at once, and never all of them one client's."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager


class Fetching:
    """`most` places, of which one client has three quarters at most, where it is known who it is."""

    def __init__(self, most: int) -> None:
        self._most, self._most_of_one = most, most - most // 4
        self._in_use: Counter[Hashable] = Counter()
        self._change = asyncio.Event()

    @asynccontextmanager
    async def place(self, peer: Hashable | None) -> AsyncIterator[None]:
        """Wait for a place and have it while the block runs.

        Args:
            peer: whose picture it is; None where nobody knows.
        """
        while not self._is_free_for(peer):
            await self._change.wait()
        self._in_use[peer] += 1
        try:
            yield
        finally:
            self._in_use[peer] -= 1
            self._in_use += Counter()  # without those that have none
            self._change.set()
            self._change = asyncio.Event()

    def _is_free_for(self, peer: Hashable | None) -> bool:
        return self._in_use.total() < self._most and (peer is None or self._in_use[peer] < self._most_of_one)
