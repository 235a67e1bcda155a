"""Independent work on all cores: each piece on one thread, the results in the order of the pieces.

A sum that a library deals to several threads depends on how many there are. Pieces that are computed whole do not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar, final

import torch

from quad.core.processes import processes_here
from quad.runtime.engines.engine import default_threads

_ONE_LANE: ContextVar[bool] = ContextVar("quad_one_lane", default=False)
Piece = TypeVar("Piece")
Result = TypeVar("Result")


def side_by_side(compute: Callable[[Piece], Result], pieces: Iterable[Piece]) -> list[Result]:
    """`compute` of every piece.

    Where torch was told to use one thread, pieces run on as many threads as there are cores: torch leaves Python's lock alone while it
    computes. Otherwise torch has the cores, and pieces run one after the other.

    Args:
        compute: reads what pieces share and changes none of it; gradients are switched on or off inside, as torch keeps that by thread.
    """
    work = list(pieces)
    workers = min(len(work), lanes())
    if workers <= 1:
        return [compute(piece) for piece in work]
    with ThreadPoolExecutor(workers, "quad-compute") as pool:
        return list(pool.map(compute, work))


def in_order(compute: Callable[[Piece], Result], pieces: Iterable[Piece]) -> Iterator[Result]:
    """`side_by_side` over pieces that are taken as their turn comes, each result once it and those before it are there."""
    workers = lanes()
    if workers <= 1:
        yield from map(compute, pieces)
        return
    running: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers, "quad-compute") as pool:
        for piece in pieces:
            running.append(pool.submit(compute, piece))
            if len(running) > workers:  # one waits, so that nobody idles while the first is still at work
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


@final
class Behind:
    """Work that a second core does while the caller goes on, one piece after the other as it is given; at once where there is one lane.

    As a context manager it ends with all of it done.

    Args:
        most: pieces that may wait, with what they hold in memory; the caller waits with the next one.
    """

    def __init__(self, most: int = 8) -> None:
        self._most = most
        self._pool = ThreadPoolExecutor(1, "quad-behind") if lanes() > 1 else None
        self._waiting: deque[Future[None]] = deque()

    def give(self, work: Callable[[], None]) -> None:
        """Have it done after all that was given before.

        Raises:
            Exception: that of an earlier piece.
        """
        if self._pool is None:
            work()
            return
        self._waiting.append(self._pool.submit(work))
        if len(self._waiting) > self._most:
            self._waiting.popleft().result()

    def wait(self) -> None:
        """Until all that was given is done; raises as `give`."""
        while self._waiting:
            self._waiting.popleft().result()

    def __enter__(self) -> Behind:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self.wait()
        finally:
            if self._pool is not None:
                self._pool.shutdown(cancel_futures=True)


@contextmanager
def one_lane(alone: bool = True) -> Iterator[None]:
    """While the block runs nothing is computed side by side in this process: an accelerator has cores of its own, and memory counts."""
    token = _ONE_LANE.set(alone)
    try:
        yield
    finally:
        _ONE_LANE.reset(token)


def lanes() -> int:
    """How many pieces run at once in this process: processes of one launch that are on this machine share its cores."""
    return max(1, default_threads() // processes_here()) if torch.get_num_threads() == 1 and not _ONE_LANE.get() else 1
