"""A directory that another one may take the place of: told by one file that each of them has, and work that is done again then."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import sleep
from typing import TypeVar

from quad.core.errors import QuadError
from quad.core.storage.stable_file import Identity

_TRIES, _PAUSE_S = 10, 0.02  # where directories come one after the other

T = TypeVar("T")


def identity_of(marker: Path) -> Identity | None:
    """The file at a path by now, None where none can be seen. A directory's own number is no such sign: it is given again at once."""
    try:
        return Identity.of(marker.stat())
    except OSError:
        return None


def unless_replaced(marker: Path, work: Callable[[], T]) -> T:
    """The result of work that reads a directory; where it fails, and another one has come to the name meanwhile, it is done again.

    Args:
        marker: a file that each such directory has, and that is written once.

    Raises:
        Whatever `work` raises of a directory that stays, or of the last of many.
    """
    for _ in range(_TRIES):
        before = identity_of(marker)
        try:
            return work()
        except (QuadError, OSError):
            if identity_of(marker) == before:
                raise
        sleep(_PAUSE_S)
    return work()
