"""Several processes at one build (`accelerate launch`): all train, the main one alone compiles, writes and speaks."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

T = TypeVar("T")
# What the main process makes alone may take hours, a vendor's compiler and its emulator; the library itself waits for 30 minutes.
_PATIENCE = timedelta(days=7)


def is_main() -> bool:
    """Is this the main process, or the only one."""
    return int(os.environ.get("RANK", "0")) == 0


def once(make: Callable[[], T], read: Callable[[], T]) -> T:
    """Let the main process make something, and the others read it when it is there.

    Args:
        make: what writes; if it raises, nobody waits for it.
        read: gives the same from what was written; raises where there is nothing.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return make()
    from accelerate import PartialState
    from torch import distributed

    state = PartialState(cpu=True)
    patient = distributed.new_group(backend="gloo", timeout=_PATIENCE)
    if not state.is_main_process:
        distributed.barrier(patient)
        return read()
    try:
        return make()
    finally:
        distributed.barrier(patient)
