"""How much of the device its clients may take."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from quad.core.errors import BusyError, mismatch
from quad.serve.api import LONGEST_ADMISSION_S
from quad.serve.error_response import HttpError

MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The most that a server takes.

    Args:
        max_body_bytes: of one call, a pack apart.
        max_upload_bytes, max_uploads: of one pack or LoRA file, and how many.
        max_admission_bytes: of memory that the admission of a LoRA file takes, the graph's files apart.
        admission_s: the longest time of one.
        max_pixels: width times height of one picture that is given.
        max_held_bytes: bodies being read and pictures of unfinished requests, all clients together.
        max_decoding_bytes: what decoders take beside that; one picture that takes more is decoded alone.
        decode_s: the longest time to decode one picture.
        max_queue: requests that wait or run.
        max_steps: of one request.
        time_limit_s: from its first step to its end.
        lease_s: how long an unfinished request lives when nobody asks after it.
        max_finished, max_finished_bytes, finished_s: finished requests that wait to be fetched: how many, how large, how long.
        max_streams: open event streams and waits for a picture.
        max_fetches: finished pictures that are being sent; more wait.
        max_connections: open connections of callers.
        max_strangers: open connections that have shown no token yet, where one is asked for.
        head_timeout_s, body_timeout_s: for the whole of a call's headers, and of its body; the second also to read what was sent.
    """

    max_body_bytes: int = 32 * MIB
    max_upload_bytes: int = 1024 * MIB
    max_uploads: int = 16
    max_admission_bytes: int = 1024 * MIB
    admission_s: float = LONGEST_ADMISSION_S
    max_pixels: int = 16 * MIB
    max_held_bytes: int = 512 * MIB
    max_decoding_bytes: int = 512 * MIB
    decode_s: float = 10.0
    max_queue: int = 32
    max_steps: int = 150
    time_limit_s: float = 600.0
    lease_s: float = 30.0
    max_finished: int = 32
    max_finished_bytes: int = 256 * MIB
    finished_s: float = 300.0
    max_streams: int = 64
    max_fetches: int = 8
    max_connections: int = 256
    max_strangers: int = 256
    head_timeout_s: float = 10.0
    body_timeout_s: float = 60.0


class Budget:
    """Bytes that clients' data holds in memory, counted as they come; used on one thread."""

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self.held_bytes = 0

    def take(self, n_bytes: int) -> None:
        """Raises:
        HttpError: 503, there is no room for so many more.
        """
        if self.held_bytes + n_bytes > self._most:
            needed = f"{self.held_bytes + n_bytes}"
            raise HttpError(
                503, BusyError(mismatch("server", f"at most {self._most} bytes held for all clients", needed, "ask again later"))
            )
        self.held_bytes += n_bytes

    def give(self, n_bytes: int) -> None:
        self.held_bytes -= n_bytes

    @contextmanager
    def account(self) -> Iterator[Account]:
        """An account whose bytes are given back when the block ends, unless they were kept."""
        account = Account(self)
        try:
            yield account
        finally:
            self.give(account.n_bytes)


class Account:
    """The part of a budget that one call holds."""

    def __init__(self, budget: Budget) -> None:
        self._budget, self.n_bytes = budget, 0

    def take(self, n_bytes: int) -> None:
        self._budget.take(n_bytes)
        self.n_bytes += n_bytes

    def give(self, n_bytes: int) -> None:
        self._budget.give(n_bytes)
        self.n_bytes -= n_bytes

    def keep(self, n_bytes: int) -> None:
        """These now belong to a request, which gives them back itself."""
        self.n_bytes -= n_bytes
