"""A decoder's process as the server sees it: started when needed, asked for a picture at a time, ended where nobody waits for it."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
from PIL import Image

import quad
from quad.core.errors import BackendError, InputError, lack_of, mismatch
from quad.runtime.conditioning.picture_file import band_edges, no_memory
from quad.serve.api import ErrorBody, as_exception
from quad.serve.decoding.messages import BYTES_PER_PIXEL, GO, LENGTH, STAY, message

_START_S, _END_S, _POLL_S = 60.0, 5.0, 0.005
_LONGEST_MESSAGE = 2**14


def worker_command(setup: str = "") -> tuple[str, ...]:
    """The decoder's command: this interpreter, without what a site adds to its start, and with the paths that it has now.

    Args:
        setup: statements that run before it, which may speak of the module as `worker`.
    """
    paths = [str(Path(quad.__file__).parents[1]), *(path for path in sys.path if path)]
    code = f"import sys\nsys.path[:] = {paths!r}\nfrom quad.serve.decoding import worker\n{setup}\nworker.main()"
    return (sys.executable, "-I", "-S", "-B", "-c", code)


class TooSlowError(InputError):
    """A picture takes its decoder longer than it was given."""


@dataclass(frozen=True, kw_only=True)
class DecodingJob:
    """One picture's file, as a client sent it.

    Args:
        where: what to call it in a message.
        time_s: the longest time for its header, and for its pixels.
        admit: called with the number of pixels and the bytes that decoding takes, before they are taken; what it raises ends the job.
    """

    data: bytes
    where: str
    max_pixels: int
    time_s: float
    admit: Callable[[int, int], Awaitable[None]]


class _Answer(msgspec.Struct, frozen=True, kw_only=True):
    """Any message of a decoder, which may have fallen to its picture: what it says is checked."""

    ready: bool = False
    error: str | None = None
    kind: str = ""
    pixels: int = 0
    decoding_bytes: int = 0
    mode: Literal["L", "RGB", "RGBA"] = "L"
    width: int = 0
    height: int = 0


class DecoderProcess:
    """One process, or none while there is nothing to do; used by one task at a time."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = tuple(command)
        self._process: subprocess.Popen[bytes] | None = None
        self._stream: socket.socket | None = None
        self._is_between_jobs = True
        self._is_closed = False

    async def decode(self, job: DecodingJob) -> Image.Image:
        """The picture, upright, as L, RGB or RGBA.

        Raises:
            InputError: it is no picture, damaged, too large, or ends its decoder. TooSlowError: it takes too long.
            BackendError: there is no memory for it, or no process. And what `job.admit` raises.
        """
        try:
            stream = self._stream or await self._start()
            self._is_between_jobs = False
            return await self._decode(job, stream)
        except TimeoutError:
            raise _too_slow(job) from None
        except EOFError:
            raise await self._why_it_ended(job) from None
        except MemoryError:
            raise no_memory(job.where) from None
        finally:
            if not self._is_between_jobs:
                await self.end()

    def close(self) -> None:
        """End what it does now, which is told whoever waits for it, and begin nothing any more."""
        self._is_closed = True
        self._kill()

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()

    async def end(self) -> None:
        """End the process and wait until it is gone. For whoever uses it: somebody else who waits would not hear of it."""
        self._kill()
        process, stream, self._process, self._stream = self._process, self._stream, None, None
        if stream is not None:
            stream.close()
        await _returncode(process)

    async def _start(self) -> socket.socket:
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            raise _no_process(error) from error
        with theirs:
            try:
                self._process = subprocess.Popen(
                    self._command, stdin=theirs.fileno(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
                )
            except OSError as error:
                ours.close()
                raise _no_process(error) from error
        ours.setblocking(False)
        self._stream, self._is_between_jobs = ours, False
        if self._is_closed:
            self._kill()
        async with asyncio.timeout(_START_S):
            await self._receive(ours)
        return ours

    async def _decode(self, job: DecodingJob, stream: socket.socket) -> Image.Image:
        facts = {"where": job.where, "n_bytes": len(job.data), "max_pixels": job.max_pixels, "cpu_s": job.time_s}
        async with asyncio.timeout(job.time_s):
            await self._send(stream, message(**facts))
            await self._send(stream, job.data)
            header = await self._receive(stream)
        if not (0 < header.pixels <= job.max_pixels and header.decoding_bytes > 0):
            raise EOFError
        try:
            await job.admit(header.pixels, header.decoding_bytes)
        except Exception:
            await self._send(stream, STAY)
            self._is_between_jobs = True
            raise
        async with asyncio.timeout(job.time_s):
            await self._send(stream, GO)
            end = await self._receive(stream)
            if not 0 < end.width * end.height <= header.pixels:
                raise EOFError
            picture = await self._receive_pixels(stream, Image.new(end.mode, (end.width, end.height), None))
        self._is_between_jobs = True
        return picture

    async def _receive_pixels(self, stream: socket.socket, picture: Image.Image) -> Image.Image:
        for top, bottom in band_edges(*picture.size):
            pixels = await self._read(stream, picture.width * (bottom - top) * BYTES_PER_PIXEL[picture.mode])
            picture.paste(Image.frombytes(picture.mode, (picture.width, bottom - top), pixels), (0, top))
        return picture

    async def _receive(self, stream: socket.socket) -> _Answer:
        """Raises:
        QuadError: the decoder's refusal. EOFError: there is no sense in what it says, or it has ended.
        """
        n_bytes = LENGTH.unpack(await self._read(stream, LENGTH.size))[0]
        try:
            answer = msgspec.json.decode(await self._read(stream, min(n_bytes, _LONGEST_MESSAGE)), type=_Answer)
        except msgspec.MsgspecError:
            raise EOFError from None
        if answer.error is not None:
            self._is_between_jobs = True
            raise as_exception(ErrorBody(answer.error, answer.kind))
        return answer

    async def _read(self, stream: socket.socket, n_bytes: int) -> bytearray:
        data, loop = bytearray(n_bytes), asyncio.get_running_loop()
        rest = memoryview(data)
        while rest:
            with _closed_is_eof():
                n_read = await loop.sock_recv_into(stream, rest)
            if not n_read:
                raise EOFError
            rest = rest[n_read:]
        return data

    async def _send(self, stream: socket.socket, data: bytes) -> None:
        with _closed_is_eof():
            await asyncio.get_running_loop().sock_sendall(stream, data)

    async def _why_it_ended(self, job: DecodingJob) -> Exception:
        returncode = None
        with suppress(TimeoutError):
            async with asyncio.timeout(_END_S):
                returncode = await _returncode(self._process)
        match returncode:
            case code if code == -signal.SIGPROF:
                return _too_slow(job)
            case code if code == -signal.SIGKILL:  # as the system does where memory is over
                return no_memory(job.where)
            case code:
                return InputError(mismatch(job.where, "a picture that a decoder survives", f"one that ends it ({code})", "save it anew"))


async def _returncode(process: subprocess.Popen[bytes] | None) -> int | None:
    """The process' exit status, once it has ended."""
    while process is not None and process.poll() is None:
        await asyncio.sleep(_POLL_S)
    return None if process is None else process.returncode


@contextmanager
def _closed_is_eof() -> Iterator[None]:
    """A stream that is reset, or that another task has closed, is one that has ended."""
    try:
        yield
    except TimeoutError:
        raise
    except (OSError, ValueError) as error:
        raise EOFError from error


def _too_slow(job: DecodingJob) -> TooSlowError:
    return TooSlowError(
        mismatch(job.where, f"a picture that is decoded within {job.time_s:g} s", "one that takes longer", "save it anew, smaller")
    )


def _no_process(error: OSError) -> BackendError:
    return lack_of("decoder", error) or BackendError(
        mismatch("decoder", "a process of its own", error.strerror, "end other programs, or ask again")
    )
