"""How axes pass a Transpose and a Reshape: plain numbers, no graph.

A permutation is that of ONNX: axis k of the result is axis `perm[k]` of what was given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

Perm = tuple[int, ...]


def inverse(perm: Perm) -> Perm:
    """The permutation that undoes it."""
    return tuple(perm.index(k) for k in range(len(perm)))


@dataclass(frozen=True)
class _Block:
    """Axes before and after a Reshape that hold the same numbers, as few as can be."""

    before: tuple[int, ...]
    after: tuple[int, ...]


def reshape_first(turned: tuple[int, ...] | None, reshaped: tuple[int, ...] | None, perm: Perm) -> tuple[tuple[int, ...], Perm] | None:
    """Reshape and Transpose in the other order: `Reshape(Transpose(x, perm))` as `Transpose(Reshape(x, shape), perm')`.

    Args:
        turned: shape between the two.
        reshaped: shape after both.

    Returns:
        `shape` and `perm'`; None where the Reshape joins axes that do not lie side by side in x, or a shape is not known.
    """
    blocks = _blocks(turned, reshaped) if turned is not None and reshaped is not None else None
    if blocks is None or turned is None or reshaped is None:
        return None
    places: list[tuple[int, _Block]] = []
    for block in blocks:
        real = [perm[k] for k in block.before if turned[k] != 1] or [perm[k] for k in block.before[:1]]
        # Axes of length 1 lie everywhere; between the others only such may lie in x.
        between = [perm.index(k) for k in range(min(real), max(real) + 1) if k not in real]
        if real != sorted(real) or any(turned[k] != 1 for k in between):
            return None
        places.append((real[0], block))
    order = [axis for _, block in sorted(places, key=lambda place: place[0]) for axis in block.after]
    return tuple(reshaped[axis] for axis in order), tuple(order.index(axis) for axis in range(len(reshaped)))


def _blocks(before: tuple[int, ...], after: tuple[int, ...]) -> list[_Block] | None:
    if prod(before) != prod(after) or not before or not after or 0 in before:
        return None
    blocks = equal_runs(before, after)
    # What is left over on one side has length 1 and goes with the last block.
    first, third = blocks[-1][0].start, blocks[-1][1].start
    blocks[-1] = range(first, len(before)), range(third, len(after))
    return [_Block(tuple(left), tuple(right)) for left, right in blocks]


def equal_runs(before: Sequence[int], after: Sequence[int]) -> list[tuple[range, range]]:
    """Axes on either side, side by side, that hold the same numbers, as few as can be; axes of length 1 at the end of one are left over.

    Args:
        before, after: shapes of as many numbers.
    """
    runs = []
    i = k = 0
    while i < len(before) and k < len(after):
        first, third, left, right = i, k, before[i], after[k]
        i, k = i + 1, k + 1
        while left != right:
            if left < right:
                left, i = left * before[i], i + 1
            else:
                right, k = right * after[k], k + 1
        runs.append((range(first, i), range(third, k)))
    return runs
