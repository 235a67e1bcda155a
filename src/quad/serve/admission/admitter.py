"""Admissions as the server sees them: one at a time, each in a process of its own, ended where nobody waits for it any more."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

import msgspec

from quad.core.errors import BackendError, BusyError, InputError, lack_of, mismatch
from quad.serve.admission.messages import LONGEST_MESSAGE, AdmissionJob, Admitted, Answer, message
from quad.serve.api import ErrorBody, Verdict, as_exception
from quad.serve.decoding.fork_server import worker_command
from quad.serve.error_response import HttpError, http_error
from quad.serve.limits import Limits
from quad.serve.worker_stream import LENGTH

_POLL_S = 0.01
WORKER = "quad.serve.admission.worker"


class Admitter:
    """One process at most, and those who wait for it in their order; used on one event loop."""

    def __init__(self, limits: Limits, command: Sequence[str] = ()) -> None:
        """Args:
        command: of the process; empty for quad's own.
        """
        self._limits = limits
        self._command = tuple(command) or worker_command(module=WORKER)
        self._turn = asyncio.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._is_closed = False
        self.outcomes = {"admitted": 0, "refused": 0}
        self.peak_ram_bytes = 0  # of the largest process that admitted one

    @property
    def running(self) -> bool:
        """Whether a LoRA is being admitted now."""
        return self._process is not None

    async def admit(self, job: AdmissionJob) -> Verdict:
        """Write the pack of a LoRA, or say why not.

        Raises:
            HttpError: 422 and other refusals, with the reasons. InputError: it takes too long, or ends its process.
            BackendError: there is no process for it. BusyError: the server stops.
        """
        async with self._turn:
            if self._is_closed:
                raise BusyError(mismatch("server", "one that takes requests", "one that is stopping", "start it again"))
            answer = await self._answer(job)
        if isinstance(answer, Admitted):
            self.outcomes["admitted"] += 1
            self.peak_ram_bytes = max(self.peak_ram_bytes, answer.verdict.peak_ram_bytes)
            return answer.verdict
        self.outcomes["refused"] += 1
        error = http_error(as_exception(ErrorBody(answer.error, answer.kind)))
        raise HttpError(error.status, error.error, reasons=answer.reasons)

    async def close(self) -> None:
        """End what runs, and start none any more."""
        self._is_closed = True
        self._kill()
        async with self._turn:
            pass

    async def _answer(self, job: AdmissionJob) -> Answer:
        try:
            ours = self._start()
            with ours:
                async with asyncio.timeout(self._limits.admission_s):
                    await asyncio.get_running_loop().sock_sendall(ours, message(job))
                    answer: Answer = msgspec.json.decode(await _receive(ours), type=Answer)
                    return answer
        except TimeoutError:
            expected = f"one that is admitted within {self._limits.admission_s:g} s"
            hint = "admit it with quad adapt, and send the pack"
            raise InputError(mismatch(f"adapter {job.name!r}", expected, "one that takes longer", hint)) from None
        except (OSError, EOFError, msgspec.MsgspecError):
            await self._raise_why_it_ended(job)
        finally:
            await self._end()

    def _start(self) -> socket.socket:
        try:
            ours, theirs = socket.socketpair()
            with theirs:
                self._process = subprocess.Popen(
                    self._command, stdin=theirs.fileno(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
                )
        except OSError as error:
            lack = BackendError(mismatch("admission", "a process of its own", error.strerror, "end other programs, or ask again"))
            raise lack_of("admission", error) or lack from error
        ours.setblocking(False)
        return ours

    async def _raise_why_it_ended(self, job: AdmissionJob) -> NoReturn:
        if self._is_closed:
            raise BusyError(mismatch("server", "one that takes requests", "one that is stopping", "start it again"))
        code = None
        with suppress(TimeoutError):
            async with asyncio.timeout(_POLL_S * 100):
                code = await self._returncode()
        if code == -signal.SIGKILL:  # as the system does where memory is over
            raise BackendError(mismatch("admission", "enough memory", "too little", "end other programs, or try again later"))
        hint = "try quad adapt, and send the pack"
        raise InputError(mismatch(f"adapter {job.name!r}", "a LoRA that its admission survives", f"one that ends it ({code})", hint))

    def _kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with suppress(OSError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def _end(self) -> None:
        self._kill()
        await asyncio.shield(self._returncode())
        self._process = None

    async def _returncode(self) -> int | None:
        while self._process is not None and self._process.poll() is None:
            await asyncio.sleep(_POLL_S)
        return None if self._process is None else self._process.returncode


async def _receive(stream: socket.socket) -> bytes:
    """Raises:
    EOFError: the stream ends before the message does, or the message has no end.
    """

    async def read(n_bytes: int) -> bytes:
        data = b""
        while len(data) < n_bytes:
            piece = await asyncio.get_running_loop().sock_recv(stream, n_bytes - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data

    (n_bytes,) = LENGTH.unpack(await read(LENGTH.size))
    if n_bytes > LONGEST_MESSAGE:
        raise EOFError
    return await read(n_bytes)
