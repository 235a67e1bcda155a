"""The number of this process among those that `accelerate launch` has started at one piece of work, as the launcher's variables tell it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

_alone = 0  # blocks of `alone` around what runs now


def process_count() -> int:
    """How many processes share the work that runs now."""
    return 1 if _alone else launched_processes()


def process_number() -> int:
    """This process's number among them, counted from 0."""
    return 0 if _alone else int(os.environ.get("RANK", "0"))


def is_main() -> bool:
    """Is this the process that writes, or the only one."""
    return process_number() == 0


def speaks() -> bool:
    """Is this the process that shows progress and results."""
    return int(os.environ.get("RANK", "0")) == 0


def launched_processes() -> int:
    """How many processes were started, on all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def processes_here() -> int:
    """How many of them were started on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


@contextmanager
def alone() -> Iterator[None]:
    """While the block runs this process works as if it were the only one: it waits for no other and writes what it makes."""
    global _alone  # noqa: PLW0603
    _alone += 1
    try:
        yield
    finally:
        _alone -= 1
