"""How slow a server may be, and the end of a conversation that is slower."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import final

from tuf.api.exceptions import DownloadError, SlowRetrievalError


@dataclass(frozen=True)
class Timeouts:
    """How slow a server may be.

    Args:
        silence_s: seconds without a byte.
        window_s: seconds over which the rate is measured, and in which an answer must begin.
        lowest_rate: bytes a second, in each such window.
    """

    silence_s: float = 15.0
    window_s: float = 20.0
    lowest_rate: int = 1024


@final
class Deadline:
    """Ends a conversation at a moment, however many bytes trickle in: a socket's own timeout begins anew with each of them.

    While the block runs it also says in tuf's words what goes wrong there.
    """

    def __init__(self, seconds: float, line: socket.socket | None = None) -> None:
        self.line, self._ended = line, False
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True

    def __enter__(self) -> Deadline:
        self._timer.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._timer.cancel()
        broken = isinstance(error, OSError | http.client.HTTPException)
        if isinstance(error, TimeoutError) or (self._ended and (broken or error is None)):  # an end that we made reads like the server's
            raise SlowRetrievalError("no answer in time") from error
        if broken:
            raise DownloadError(str(error) or type(error).__name__) from error

    def _end(self) -> None:
        self._ended = True
        if self.line is not None:
            with suppress(OSError):
                self.line.shutdown(socket.SHUT_RDWR)


def metered(chunks: Iterator[bytes], timeouts: Timeouts, clock: Callable[[], float] = time.monotonic) -> Iterator[bytes]:
    """The same chunks, as long as they come fast enough.

    Raises:
        SlowRetrievalError: a window brought less than it must.
    """
    since, n_bytes = clock(), 0
    for chunk in chunks:
        n_bytes += len(chunk)
        passed = clock() - since
        if passed >= timeouts.window_s:
            if n_bytes < timeouts.lowest_rate * passed:
                raise SlowRetrievalError(f"{n_bytes} bytes in {passed:.0f} s")
            since, n_bytes = clock(), 0
        yield chunk
