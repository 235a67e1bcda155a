"""The fork server and its decoders: a file comes in, pixels go out. They hold nothing of quad's server, and end with their streams.

A decoder is forked from a process that has everything loaded, which takes milliseconds where a new interpreter takes a tenth of a second.
They write no file, and import little beside Pillow, because they take memory from the device for as long as they live.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import socket
from pathlib import Path
from typing import Any

from PIL import Image
from PIL import WebPImagePlugin as WebPImagePlugin  # known from now on: Pillow would load every format to find it

from quad.core.errors import QuadError
from quad.runtime.conditioning.picture_file import bands, decoding_bytes, open_file, to_eight_bits, upright
from quad.serve.decoding.messages import ENDED, GO, ORDER, READY, message
from quad.serve.worker_stream import LENGTH, STREAM, read_exactly, write_all

FORMATS = ("PNG", "JPEG", "WEBP")
_HEADER_BYTES_PER_PIXEL = 8  # WebP's canvases, which are there when its header is read
_SLACK_BYTES = 64 * 2**20  # the interpreter's own, and libraries that are loaded when they are first needed


class Memory:
    """The bound on a decoder's address space, where the system tells its size."""

    def __init__(self) -> None:
        self._soft, self._hard = resource.getrlimit(resource.RLIMIT_AS)
        try:
            self._own_bytes = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        except OSError:
            self._own_bytes = 0

    def limit(self, n_bytes: int) -> None:
        """Let one picture take so much."""
        if self._own_bytes:
            most = self._own_bytes + _SLACK_BYTES + n_bytes
            inherited = [bound for bound in (self._soft, self._hard) if bound != resource.RLIM_INFINITY]
            resource.setrlimit(resource.RLIMIT_AS, (min([most, *inherited]), self._hard))


def main() -> None:
    """Begin and end decoders as ordered, until the stream of orders ends; those that are left then end too."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    Image.preinit()
    memory = Memory()
    gc.freeze()  # what is there is shared by all decoders as long as none touches it
    decoders: dict[int, int] = {}
    with socket.socket(fileno=STREAM) as orders:
        orders.sendall(ENDED.pack(READY, 0, 0))
        while True:
            order, streams, _, _ = socket.recv_fds(orders, ORDER.size, 1)
            if len(order) < ORDER.size:
                break
            (number,) = ORDER.unpack(order)
            if streams:
                decoders[number] = _fork(streams[0], memory)
                os.close(streams[0])
            else:
                orders.sendall(ENDED.pack(number, *_end(decoders.pop(number, 0))))
    for decoder in decoders.values():
        _end(decoder)


def _fork(stream: int, memory: Memory) -> int:
    """A new decoder's process, or minus the number of the error why there is none."""
    try:
        decoder = os.fork()
    except OSError as error:
        return -(error.errno or 1)
    if decoder:
        return decoder
    try:
        os.dup2(stream, STREAM)  # its own, in place of the orders
        os.close(stream)
        _decode_all(memory)
        os._exit(0)
    finally:
        os._exit(1)


def _end(decoder: int) -> tuple[int, int]:
    """End a decoder that has not ended by itself: its return code, minus a signal's number where that ended it; and why none began."""
    if decoder <= 0:
        return 0, -decoder
    os.kill(decoder, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(decoder, 0)[1]), 0


def _decode_all(memory: Memory) -> None:
    """Decode what comes until the stream ends; where a picture takes more than its time, a signal ends the process."""
    while length := read_exactly(LENGTH.size):
        job = json.loads(read_exactly(*LENGTH.unpack(length)))
        os.nice(job["niceness"])
        memory.limit(3 * job["n_bytes"] + _HEADER_BYTES_PER_PIXEL * job["max_pixels"])
        signal.setitimer(signal.ITIMER_PROF, job["cpu_s"])
        try:
            _answer(read_exactly(job["n_bytes"]), job, memory)
        except QuadError as error:
            write_all(message(error=str(error), kind=type(error).__name__))
        signal.setitimer(signal.ITIMER_PROF, 0)


def _answer(data: bytes, job: dict[str, Any], memory: Memory) -> None:
    with open_file(data, job["where"], job["max_pixels"], FORMATS) as picture:
        needed = decoding_bytes(picture)
        write_all(message(pixels=picture.width * picture.height, decoding_bytes=needed))
        if read_exactly(len(GO)) != GO:
            return
        memory.limit(3 * len(data) + needed)
        pixels = decode(picture)
    write_all(message(mode=pixels.mode, width=pixels.width, height=pixels.height))
    for _, band in bands(pixels):
        write_all(band.tobytes())


def decode(picture: Image.Image) -> Image.Image:
    """An opened file's pixels, upright, as L, RGB or RGBA."""
    return to_eight_bits(upright(picture))
