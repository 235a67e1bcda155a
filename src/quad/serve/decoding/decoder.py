"""Pictures that clients send, decoded: nobody waits long for somebody else's pictures that take long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from PIL import Image

from quad.core.errors import BusyError, mismatch
from quad.serve.decoding.fork_server import ForkServer, worker_command
from quad.serve.decoding.job import DecodingJob, TooSlowError, decode
from quad.serve.decoding.turns import Turns
from quad.serve.limits import Limits

QUICK_PLACES, QUICK_S, SHARE_S = 4, 1.0, 0.1
SLOW_NICENESS = 10
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
    """Processes for pictures, forked in a moment from one that is started when it is needed. None sees pictures of two callers.

    Four pictures of four callers at once, each for a second, or a tenth of one where others wait. What needs longer takes its turn among
    those that do, one at a time, and so does for ten minutes whatever its sender sends. So no picture waits long for a stranger's.
    """

    def __init__(self, limits: Limits, command: Sequence[str] = ()) -> None:
        self._limits = limits
        self._fork_server = ForkServer(command or worker_command())
        self._quick, self._slow = Turns(QUICK_PLACES, SHARE_S), Turns(1)
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
                async with self._quick.turn(picture.caller):
                    return await self._decode(picture, min(QUICK_S, longest_s), 0)
            except TimeoutError:
                pass  # others waited
            except TooSlowError:
                if longest_s <= QUICK_S:
                    raise
                self._remember(picture.caller, now)
        most = max(1, self._limits.max_queue // 2)
        if self._slow.jobs >= most:
            raise BusyError(mismatch("pictures", f"fewer than {most} that take long to decode", str(most), "ask again later"))
        async with self._slow.turn(picture.caller):
            return await self._decode(picture, longest_s, SLOW_NICENESS)

    async def end_idle(self) -> None:
        """End the process that has had nothing to do for a while."""
        used_at = max(self._quick.used_at, self._slow.used_at)
        if not self._quick.jobs and not self._slow.jobs and asyncio.get_running_loop().time() - used_at > IDLE_S:
            await self._fork_server.end()

    async def close(self) -> None:
        """End all processes, whatever they do, and start none any more."""
        self._is_closed = True
        await self._fork_server.end()

    async def _decode(self, picture: SentPicture, time_s: float, niceness: int) -> Image.Image:
        async with self._memory.account() as take:

            async def admit(pixels: int, decoding_bytes: int) -> None:
                picture.admit(pixels)
                await take(decoding_bytes)

            self._require_open()
            job = DecodingJob(
                data=picture.data,
                where=picture.where,
                caller=picture.caller,
                max_pixels=self._limits.max_pixels,
                time_s=time_s,
                niceness=niceness,
                admit=admit,
            )
            try:
                return await decode(job, self._fork_server)
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
