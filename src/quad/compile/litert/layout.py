"""Where the axes of a value lie: a tensor may hold them in another order than the graph names them.

Transposes of a graph cost nothing that way; one is written only where an operator needs a certain order, and convolutions find their
channels last. An order is that of memory: axis k of the tensor is axis `order[k]` of the value.
"""

from __future__ import annotations

from dataclasses import dataclass

from quad.compile.passes.layout.axes import equal_runs

Shape = tuple[int, ...]
Order = tuple[int, ...]


@dataclass(frozen=True)
class Stored:
    """A value of the graph in a tensor.

    Args:
        index: of the tensor.
    """

    index: int
    order: Order

    @property
    def is_plain(self) -> bool:
        """The tensor's axes are the value's."""
        return self.order == plain(len(self.order))


def plain(rank: int) -> Order:
    """The value's own order."""
    return tuple(range(rank))


def channels_last(rank: int) -> Order:
    """Batch, places, channels."""
    return (0, *range(2, rank), 1)


def laid_out(shape: Shape, order: Order) -> Shape:
    """The tensor's shape of a value's."""
    return tuple(shape[axis] for axis in order)


def turned(order: Order, perm: Order) -> Order:
    """Order of a value whose axis k is axis `perm[k]` of one in this order; nothing moves."""
    return tuple(perm.index(axis) for axis in order)


def same_numbers(shape: Shape, first: Order, second: Order) -> bool:
    """Whether two orders differ in axes of length 1 alone, so that memory holds the same."""
    return [axis for axis in first if shape[axis] != 1] == [axis for axis in second if shape[axis] != 1]


def reshaped(before: Shape, order: Order, after: Shape) -> Order | None:
    """Order in which a reshaped value lies in the same memory; None where a group of axes that is joined or split is torn apart there.

    Axes of length 1 come first.
    """
    groups = equal_runs([n for n in before if n != 1], [n for n in after if n != 1])
    real_before = [axis for axis, n in enumerate(before) if n != 1]
    real_after = [axis for axis, n in enumerate(after) if n != 1]
    memory = [real_before.index(axis) for axis in order if before[axis] != 1]
    result: list[int] = [axis for axis, n in enumerate(after) if n == 1]
    place = 0
    while place < len(memory):
        group = next(group for group in groups if memory[place] in group[0])
        if memory[place : place + len(group[0])] != list(group[0]):
            return None
        result += [real_after[axis] for axis in group[1]]
        place += len(group[0])
    return tuple(result)
