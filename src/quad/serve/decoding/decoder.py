"""Turns of pictures at decoders: nobody waits long for somebody else's pictures that take long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from PIL import Image

from quad.core.errors import BusyError, mismatch
from quad.serve.decoding.process import DecoderProcess, DecodingJob, TooSlowError, worker_command
from quad.serve.limits import Limits

QUICK_S = 1.0
IDLE_S = 30.0
_SLOW_FOR_S, _MOST_SLOW = 600.0, 256


@dataclass(frozen=True, kw_only=True)
class SentPicture:
    """A picture's file that a client sent.

    Args:
        where: what to call it in a message.
        caller: whose it is, as far as the system tells.
        admit: called with the number of its pixels before it is decoded; what it raises refuses the picture.
    """

    data: bytes
    where: str
    caller: Hashable
    admit: Callable[[int], None]


class Decoder:
    """Two processes at most, each started when it is needed: one for pictures that take a moment, one for those that take longer.

    Whoever sent a picture that took longer is served by the second for ten minutes. So a picture waits for a stranger's at most a moment.
    """

    def __init__(self, limits: Limits, command: Sequence[str] = ()) -> None:
        self._limits = limits
        self._quick, self._slow = (_Lane(command or worker_command()) for _ in range(2))
        self._memory = _Memory(limits.max_decoding_bytes)
        self._slow_until: dict[Hashable, float] = {}
        self._is_closed = False

    async def decode(self, picture: SentPicture) -> Image.Image:
        """Its pixels, upright, as L, RGB or RGBA.

        Raises:
            InputError: it is no PNG, JPEG or WebP, is damaged, has too many pixels or takes too long. BackendError: there is no memory.
            BusyError: too many take long, or the server stops. And what `picture.admit` raises.
        """
        now, longest_s = asyncio.get_running_loop().time(), self._limits.decode_s
        if self._slow_until.get(picture.caller, now) <= now:
            try:
                return await self._decode(picture, self._quick, min(QUICK_S, longest_s))
            except TooSlowError:
                if longest_s <= QUICK_S:
                    raise
            self._remember(picture.caller, now)
        most = max(1, self._limits.max_queue // 2)
        if self._slow.jobs >= most:
            raise BusyError(mismatch("pictures", f"fewer than {most} that take long to decode", str(most), "ask again later"))
        return await self._decode(picture, self._slow, longest_s)

    async def end_idle(self) -> None:
        """End processes that have had nothing to do for a while."""
        for lane in (self._quick, self._slow):
            await lane.end_idle()

    async def close(self) -> None:
        """End both, whatever they do, and start none any more."""
        self._is_closed = True
        for lane in (self._quick, self._slow):
            lane.process.close()
            async with lane.turn():
                await lane.process.end()

    async def _decode(self, picture: SentPicture, lane: _Lane, time_s: float) -> Image.Image:
        async with lane.turn(), self._memory.account() as take:

            async def admit(pixels: int, decoding_bytes: int) -> None:
                picture.admit(pixels)
                await take(decoding_bytes)

            self._require_open()
            job = DecodingJob(data=picture.data, where=picture.where, max_pixels=self._limits.max_pixels, time_s=time_s, admit=admit)
            try:
                return await lane.process.decode(job)
            finally:
                self._require_open()

    def _require_open(self) -> None:
        if self._is_closed:
            raise BusyError(mismatch("server", "one that takes requests", "one that is stopping", "start it again"))

    def _remember(self, caller: Hashable, now: float) -> None:
        self._slow_until.pop(caller, None)
        self._slow_until[caller] = now + _SLOW_FOR_S
        while len(self._slow_until) > _MOST_SLOW:
            self._slow_until.pop(next(iter(self._slow_until)))


class _Lane:
    """One process, and those who wait for it in their order."""

    def __init__(self, command: Sequence[str]) -> None:
        self.process, self.jobs = DecoderProcess(command), 0
        self._turn, self._used_at = asyncio.Lock(), 0.0

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        self.jobs += 1
        try:
            async with self._turn:
                yield
        finally:
            self.jobs -= 1
            self._used_at = asyncio.get_running_loop().time()

    async def end_idle(self) -> None:
        if not self.jobs and asyncio.get_running_loop().time() - self._used_at > IDLE_S:
            await self.process.end()


class _Memory:
    """Bytes that decoding takes in all lanes together: within a bound, or one alone."""

    def __init__(self, most_bytes: int) -> None:
        self._most, self._in_use, self._change = most_bytes, 0, asyncio.Event()

    @asynccontextmanager
    async def account(self) -> AsyncIterator[Callable[[int], Awaitable[None]]]:
        taken = 0

        async def take(n_bytes: int) -> None:
            nonlocal taken
            while self._in_use and self._in_use + n_bytes > self._most:
                await self._change.wait()
            self._in_use += n_bytes
            taken += n_bytes

        try:
            yield take
        finally:
            self._in_use -= taken
            self._change.set()
            self._change = asyncio.Event()
