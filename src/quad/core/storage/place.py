"""The directory at a name, and work that is done again where another one has come there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import sleep
from typing import TypeVar

from quad.core.errors import QuadError

_TRIES, _PAUSE_S = 10, 0.02  # where directories come one after the other

T = TypeVar("T")
Place = tuple[int, int]  # device and inode


def place_of(folder: Path) -> Place | None:
    """The directory at a name; None where none can be seen."""
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def unless_replaced(folder: Path, work: Callable[[], T]) -> T:
    """The result of work that reads a directory; where it fails, and another one has come to the name meanwhile, it is done again.

    Raises:
        Whatever `work` raises of a directory that stays, or of the last of many.
    """
    for _ in range(_TRIES):
        place = place_of(folder)
        try:
            return work()
        except (QuadError, OSError):
            if place_of(folder) == place:
                raise
        sleep(_PAUSE_S)
    return work()
