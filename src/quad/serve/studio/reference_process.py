"""Full precision's pictures, made by a process of their own: it may have torch, which this one must not load."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
from collections.abc import Sequence
from contextlib import suppress

import msgspec

from quad.core.errors import BackendError, BusyError, mismatch
from quad.serve.api import ErrorBody, NewRequest, Picture, as_exception
from quad.serve.worker_stream import LENGTH, framed

_LONGEST_ANSWER = 2**28
_POLL_S = 0.01


class ReferencePicture(msgspec.Struct, frozen=True, kw_only=True):
    """A picture by the full-precision model.

    Args:
        image: base64 of a PNG.
        seconds: to make it.
        sampler: `KIND:STEPS` that was used.
        guidance: that was used.
        adapters: that were used.
    """

    image: Picture
    seconds: float
    sampler: str
    guidance: float
    adapters: dict[str, float]
    seed: int


class ReferenceAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answer of the process to a request: a picture, or why not."""

    picture: ReferencePicture | None = None
    error: ErrorBody | None = None


class ReferenceProcess:
    """One process, started by the first request and kept, and those who wait for it in their order; used on one event loop."""

    def __init__(self, command: Sequence[str]) -> None:
        """Args:
        command: of the process, which reads framed `NewRequest`s of descriptor 0 and answers each there by a framed `ReferenceAnswer`.
        """
        self._command = tuple(command)
        self._turn = asyncio.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._stream: socket.socket | None = None
        self._is_closed = False

    async def make(self, request: NewRequest) -> ReferencePicture:
        """A picture. Who stops waiting ends the process with it; the next request starts another.

        Raises:
            QuadError: what the process says. BackendError: there is none, or it has ended. BusyError: the server stops.
        """
        async with self._turn:
            if self._is_closed:
                raise BusyError(mismatch("server", "one that takes requests", "one that is stopping", "start it again"))
            try:
                answer = await self._answer(request)
            except (OSError, EOFError, msgspec.MsgspecError) as error:
                await self._end()
                hint = "see what quad studio wrote, and start it again"
                raise BackendError(mismatch("full precision", "a process that answers", "one that has ended", hint)) from error
            except BaseException:
                await self._end()
                raise
        if answer.picture is None:
            raise as_exception(answer.error or ErrorBody("full precision: no picture", "BackendError"))
        return answer.picture

    async def close(self) -> None:
        """End what runs, and start none any more."""
        self._is_closed = True
        self._kill()
        async with self._turn:
            await self._end()

    async def _answer(self, request: NewRequest) -> ReferenceAnswer:
        stream = self._stream or self._start()
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(stream, framed(msgspec.json.encode(request)))
        (n_bytes,) = LENGTH.unpack(await _receive(stream, LENGTH.size))
        if n_bytes > _LONGEST_ANSWER:
            raise EOFError
        return msgspec.json.decode(await _receive(stream, n_bytes), type=ReferenceAnswer)

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(self._command, stdin=theirs.fileno(), stdout=subprocess.DEVNULL, start_new_session=True)
        ours.setblocking(False)
        self._stream = ours
        return ours

    def _kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with suppress(OSError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def _end(self) -> None:
        self._kill()
        while self._process is not None and self._process.poll() is None:
            await asyncio.sleep(_POLL_S)
        if self._stream is not None:
            self._stream.close()
        self._process = self._stream = None


async def _receive(stream: socket.socket, n_bytes: int) -> bytes:
    """Raises:
    EOFError: the stream ends before that.
    """
    data = bytearray()
    while len(data) < n_bytes:
        piece = await asyncio.get_running_loop().sock_recv(stream, n_bytes - len(data))
        if not piece:
            raise EOFError
        data += piece
    return bytes(data)
