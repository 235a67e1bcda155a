"""The fork server as the quad server sees it: started when needed, told to begin a decoder for a picture, and to end it."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import quad
from quad.core.errors import BackendError, lack_of, mismatch
from quad.serve.decoding.messages import ENDED, ORDER, READY

_START_S, _POLL_S = 60.0, 0.005
_MOST_IDLE = 2


def worker_command(setup: str = "", module: str = "quad.serve.decoding.worker") -> tuple[str, ...]:
    """The command of a process: this interpreter, without what a site adds to its start, and with the paths that it has now.

    Args:
        setup: statements that run before it, which may speak of the module as `worker`.
        module: whose `main` it runs; the fork server's by default.
    """
    paths = [str(Path(quad.__file__).parents[1]), *(path for path in sys.path if path)]
    code = f"import sys\nsys.path[:] = {paths!r}\nimport {module} as worker\n{setup}\nworker.main()"
    return (sys.executable, "-I", "-S", "-B", "-c", code)


@dataclass(frozen=True)
class Ended:
    """The end of a decoder: its return code, minus a signal's number where that ended it; and the error why none began, or 0."""

    returncode: int
    errno: int


class ForkServer:
    """A process that forks decoders, or none while there is nothing to do. Used on one event loop."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = tuple(command)
        self._process: _ForkServerProcess | None = None
        self._idle: dict[Hashable, Fork] = {}

    async def begin(self, caller: Hashable) -> Fork:
        """A decoder that has seen no pictures, or none but this caller's.

        Raises:
            BackendError: there is no process for it.
        """
        while (process := self._process) is None or process.has_gone:
            await self.end()
            self._process = self._process or _ForkServerProcess(self._command)
        with suppress(TimeoutError):
            async with asyncio.timeout(_START_S):
                await asyncio.shield(process.ready)
        if process.has_gone:
            raise no_process(ChildProcessError(errno.ECHILD, "one that ended"))
        return self._idle.pop(caller, None) or process.begin()

    def keep(self, fork: Fork, caller: Hashable) -> None:
        """Use a decoder, which is through with a picture, for this caller's next one; of too many the one that has waited longest goes."""
        if fork.process is not self._process or caller in self._idle:
            fork.end()
            return
        self._idle[caller] = fork
        if len(self._idle) > _MOST_IDLE:
            self._idle.pop(next(iter(self._idle))).end()

    def kill(self) -> None:
        """End it and all decoders now, which is told whoever waits for one."""
        if self._process is not None:
            self._process.kill()

    async def end(self) -> None:
        """As `kill`, and wait until it is gone."""
        process, self._process = self._process, None
        idle, self._idle = self._idle, {}
        for fork in idle.values():
            fork.stream.close()
        if process is not None:
            process.kill()
            await process.wait()


class Fork:
    """A decoder that was begun.

    Args:
        stream: to it; it ends where the decoder does.
    """

    def __init__(self, process: _ForkServerProcess, number: int, stream: socket.socket) -> None:
        self.process, self._number, self.stream = process, number, stream
        self._ended: asyncio.Future[Ended | None] | None = None

    def end(self) -> asyncio.Future[Ended | None]:
        """End it, if it has not ended by itself. The result is there when it is gone: None where the fork server is gone too."""
        if self._ended is None:
            self.stream.close()
            self._ended = self.process.end(self._number)
        return self._ended


class _ForkServerProcess:
    """One process from its start on. It and its decoders are a process group, so that they can be ended at once."""

    def __init__(self, command: Sequence[str]) -> None:
        try:
            self._orders, theirs = socket.socketpair()
            with theirs:
                self._process = subprocess.Popen(
                    command, stdin=theirs.fileno(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
                )
        except OSError as error:
            raise no_process(error) from error
        self._orders.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._orders, self._read_answers)
        self._numbers, self._data = count(READY + 1), b""
        self.ready: asyncio.Future[Ended | None] = self._loop.create_future()
        self._waiting = {READY: self.ready}
        self.has_gone = False

    def begin(self) -> Fork:
        """Raises:
        BackendError: there are no descriptors for it, or no process any more.
        """
        number = next(self._numbers)
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            raise no_process(error) from error
        ours.setblocking(False)
        with theirs:
            try:
                socket.send_fds(self._orders, [ORDER.pack(number)], [theirs.fileno()])
            except OSError as error:
                ours.close()
                raise no_process(error) from error
        return Fork(self, number, ours)

    def end(self, number: int) -> asyncio.Future[Ended | None]:
        ended = self._waiting[number] = self._loop.create_future()
        try:
            self._orders.send(ORDER.pack(number))
        except OSError:
            self._leave()
        return ended

    def kill(self) -> None:
        if self._process.returncode is None:  # until it is waited for, the number of its group is nobody else's
            with suppress(OSError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._leave()

    async def wait(self) -> None:
        while self._process.poll() is None:
            await asyncio.sleep(_POLL_S)

    def _read_answers(self) -> None:
        try:
            data = self._orders.recv(2**12)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.kill()
        self._data += data
        while len(self._data) >= ENDED.size:
            number, returncode, error = ENDED.unpack_from(self._data)
            self._data = self._data[ENDED.size :]
            self._answer(number, Ended(returncode, error))

    def _leave(self) -> None:
        """It is gone, or as good as."""
        if not self.has_gone:
            self.has_gone = True
            self._loop.remove_reader(self._orders)
            self._orders.close()
        for number in list(self._waiting):
            self._answer(number, None)

    def _answer(self, number: int, ended: Ended | None) -> None:
        waiting = self._waiting.pop(number, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(ended)


def no_process(error: OSError) -> BackendError:
    return lack_of("decoder", error) or BackendError(
        mismatch("decoder", "a process of its own", error.strerror, "end other programs, or ask again")
    )
