"""Where torch computes: the choice among what a machine has, and how many calls fit into a batch there. No torch in here."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TypeVar

from quad.core.errors import UsageError, mismatch

Item = TypeVar("Item")
Result = TypeVar("Result")

CPU, AUTO = "cpu", "auto"
ACCELERATORS = ("cuda", "mps")  # the one that `auto` prefers first
DEVICES = (AUTO, CPU, *ACCELERATORS)
_HALF = 2


def choose_device(asked: str, there: Collection[str]) -> str:
    """The device to compute on.

    Args:
        asked: one of `DEVICES`.
        there: accelerators that this machine and its torch have.

    Raises:
        UsageError: no such device, or not on this machine.
    """
    if asked == AUTO:
        return next((name for name in ACCELERATORS if name in there), CPU)
    if asked == CPU or asked in there:
        return asked
    if asked not in DEVICES:
        raise UsageError(mismatch("--device", f"one of {', '.join(DEVICES)}", repr(asked), "choose one of these"))
    has = ", ".join((CPU, *there))
    raise UsageError(mismatch(f"--device {asked}", f"a device that torch reaches here: {has}", "none of that kind", "choose one of these"))


def batch_that_fits(free_bytes: int, bytes_a_call: int, most: int) -> int:
    """How many calls go into one batch: as many as half of the free memory holds, one at least and `most` at most."""
    return max(1, min(most, free_bytes // _HALF // max(1, bytes_a_call)))


def in_fitting_batches(
    compute: Callable[[Sequence[Item]], Sequence[Result]], items: Sequence[Item], together: int, exhausted: type[Exception]
) -> Iterator[Result]:
    """The result of every item, in batches that are halved for good when memory runs out.

    Args:
        compute: the results of one batch.
        together: items of the first batch.
        exhausted: what `compute` raises where a batch is too large; of a single item it is passed on.
    """
    first = 0
    while first < len(items):
        try:
            results = compute(items[first : first + together])
        except exhausted:
            if together == 1:
                raise
            together = max(1, together // _HALF)
            continue
        yield from results
        first += together
