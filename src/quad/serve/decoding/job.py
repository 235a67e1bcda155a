"""One picture and its decoder: the file goes there, the header and the pixels come back, and the decoder is ended."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Literal

import msgspec
from PIL import Image

from quad.core.errors import InputError, mismatch
from quad.runtime.conditioning.picture_file import band_edges, no_memory
from quad.serve.api import ErrorBody, as_exception
from quad.serve.decoding.fork_server import Ended, ForkServer, no_process
from quad.serve.decoding.messages import BYTES_PER_PIXEL, GO, message
from quad.serve.worker_stream import LENGTH

_END_S = 5.0
_LONGEST_MESSAGE = 2**14


class TooSlowError(InputError):
    """A picture takes its decoder longer than it was given."""


@dataclass(frozen=True, kw_only=True)
class DecodingJob:
    """One picture's file, as a client sent it.

    Args:
        where: what to call it in a message.
        caller: whose it is; a decoder that saw one caller's picture sees nobody else's.
        time_s: the longest time for its header, and for its pixels.
        niceness: of its decoder, above the server's own; one that is nice is not used again.
        admit: called with the number of pixels and the bytes that decoding takes, before they are taken; what it raises ends the job.
    """

    data: bytes
    where: str
    caller: Hashable
    max_pixels: int
    time_s: float
    niceness: int
    admit: Callable[[int, int], Awaitable[None]]


class _Answer(msgspec.Struct, frozen=True, kw_only=True):
    """Any message of a decoder, which may have fallen to its picture: what it says is checked."""

    error: str | None = None
    kind: str = ""
    pixels: int = 0
    decoding_bytes: int = 0
    mode: Literal["L", "RGB", "RGBA"] = "L"
    width: int = 0
    height: int = 0


async def decode(job: DecodingJob, fork_server: ForkServer) -> Image.Image:
    """The picture, upright, as L, RGB or RGBA. Its decoder is ended, also where this is cancelled, or waits for the caller's next picture.

    Raises:
        InputError: it is no picture, damaged, too large, or ends its decoder. TooSlowError: it takes too long.
        BackendError: there is no memory for it, or no process. And what `job.admit` raises.
    """
    decoder = await fork_server.begin(job.caller)
    try:
        picture = await _exchange(job, decoder.stream)
    except BaseException as error:
        decoder.end()
        match error:
            case TimeoutError():
                raise _too_slow(job) from None
            case EOFError():
                raise await _why_it_ended(job, decoder.end()) from None
            case MemoryError():
                raise no_memory(job.where) from None
        raise
    if job.niceness:
        decoder.end()
    else:
        fork_server.keep(decoder, job.caller)
    return picture


async def _exchange(job: DecodingJob, stream: socket.socket) -> Image.Image:
    facts = {"where": job.where, "n_bytes": len(job.data), "max_pixels": job.max_pixels, "cpu_s": job.time_s, "niceness": job.niceness}
    async with asyncio.timeout(job.time_s):
        await _send(stream, message(**facts))
        await _send(stream, job.data)
        header = await _receive(stream)
    if not (0 < header.pixels <= job.max_pixels and header.decoding_bytes > 0):
        raise EOFError
    await job.admit(header.pixels, header.decoding_bytes)
    async with asyncio.timeout(job.time_s):
        await _send(stream, GO)
        end = await _receive(stream)
        if not 0 < end.width * end.height <= header.pixels:
            raise EOFError
        return await _receive_pixels(stream, Image.new(end.mode, (end.width, end.height), None))


async def _receive_pixels(stream: socket.socket, picture: Image.Image) -> Image.Image:
    for top, bottom in band_edges(*picture.size):
        pixels = await _read(stream, picture.width * (bottom - top) * BYTES_PER_PIXEL[picture.mode])
        picture.paste(Image.frombytes(picture.mode, (picture.width, bottom - top), pixels), (0, top))
    return picture


async def _receive(stream: socket.socket) -> _Answer:
    """Raises:
    QuadError: the decoder's refusal. EOFError: there is no sense in what it says, or it has ended.
    """
    n_bytes = LENGTH.unpack(await _read(stream, LENGTH.size))[0]
    try:
        answer = msgspec.json.decode(await _read(stream, min(n_bytes, _LONGEST_MESSAGE)), type=_Answer)
    except msgspec.MsgspecError:
        raise EOFError from None
    if answer.error is not None:
        raise as_exception(ErrorBody(answer.error, answer.kind))
    return answer


async def _read(stream: socket.socket, n_bytes: int) -> bytearray:
    data, loop = bytearray(n_bytes), asyncio.get_running_loop()
    rest = memoryview(data)
    while rest:
        with _closed_is_eof():
            n_read = await loop.sock_recv_into(stream, rest)
        if not n_read:
            raise EOFError
        rest = rest[n_read:]
    return data


async def _send(stream: socket.socket, data: bytes) -> None:
    with _closed_is_eof():
        await asyncio.get_running_loop().sock_sendall(stream, data)


async def _why_it_ended(job: DecodingJob, ending: asyncio.Future[Ended | None]) -> Exception:
    ended = None
    with suppress(TimeoutError):
        async with asyncio.timeout(_END_S):
            ended = await ending
    if ended is not None and ended.errno:
        return no_process(OSError(ended.errno, os.strerror(ended.errno)))
    match None if ended is None else ended.returncode:
        case code if code == -signal.SIGPROF:
            return _too_slow(job)
        case code if code == -signal.SIGKILL:  # as the system does where memory is over
            return no_memory(job.where)
        case code:
            return InputError(mismatch(job.where, "a picture that a decoder survives", f"one that ends it ({code})", "save it anew"))


@contextmanager
def _closed_is_eof() -> Iterator[None]:
    """A stream that is reset is one that has ended."""
    try:
        yield
    except TimeoutError:
        raise
    except OSError as error:
        raise EOFError from error


def _too_slow(job: DecodingJob) -> TooSlowError:
    return TooSlowError(
        mismatch(job.where, f"a picture that is decoded within {job.time_s:g} s", "one that takes longer", "save it anew, smaller")
    )
