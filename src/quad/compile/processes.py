"""Several processes at one build (`accelerate launch`): all compute, the main one alone writes and speaks."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


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

    state = PartialState(cpu=True)
    if not state.is_main_process:
        state.wait_for_everyone()
        return read()
    try:
        return make()
    finally:
        state.wait_for_everyone()
