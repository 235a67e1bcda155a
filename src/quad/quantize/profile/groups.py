"""The fewest groups of adapters, each with activation ranges of its own, that leave everyone within a stated loss.

Source: docs/method.md section 4.

The loss of a member in a group is how many dB nearer to full precision the U-Net's output is when the member has a group to itself. More
members make ranges wider, so what is too much for a pair is too much for any group that holds it: the N x N table of pairs, member i in a
group with j, rules groups out before they are measured, and what was measured too much rules out all that hold it. The groups that
are taken have been measured as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

Group = tuple[str, ...]
Losses = Callable[[Group], Mapping[str, float]]  # of each member of a group, dB; members in the order of all

MOST_SEARCHED = 12  # members that all ways to share out are tried for; more are taken one after the other
DEFAULT_LOSS = 3.0  # twice the noise: what one profile may cost an adapter and still serve it (`anchor.SERVES`)


@dataclass(frozen=True)
class GroupLimits:
    """Bounds of a grouping.

    Args:
        loss_db: how much a member may lose.
        groups: how many there may be at most.
    """

    loss_db: float
    groups: int


@dataclass(frozen=True, kw_only=True)
class Grouping:
    """Members in groups.

    Args:
        groups: each in the order of all members; `groups[0]` has the first of them.
        losses: of every member in its group, dB.
        together: of every member where all are in one group, dB.
        pairs: member i -> member j -> loss of i in a group with j, dB; empty where it was not needed, or there are too many members.
    """

    groups: tuple[Group, ...]
    losses: Mapping[str, float]
    together: Mapping[str, float]
    pairs: Mapping[str, Mapping[str, float]]

    @staticmethod
    def single(members: Sequence[str]) -> Grouping:
        """All in one group, nothing measured."""
        return Grouping(groups=(tuple(members),), losses={}, together={}, pairs={})

    @property
    def largest(self) -> Group:
        """The group with the most members, the first of equals."""
        return max(self.groups, key=len)

    def to_json(self) -> dict[str, Any]:
        """`losses`, `together`, `pairs`."""
        return {"losses": dict(self.losses), "together": dict(self.together), "pairs": {i: dict(row) for i, row in self.pairs.items()}}


def choose_groups(members: Sequence[str], limits: GroupLimits, losses: Losses) -> Grouping:
    """The fewest groups within the limits; where so many groups cannot hold all within the loss, those in which the worst loses least.

    Args:
        members: adapters, and the base where it counts.
        losses: measures a group.
    """
    everyone = tuple(members)
    together = dict(losses(everyone))
    if limits.groups == 1 or len(everyone) < 2 or max(together.values()) <= limits.loss_db:
        return Grouping(groups=(everyone,), losses=together, together=together, pairs={})
    if len(everyone) > MOST_SEARCHED:
        groups = _one_by_one(sorted(everyone, key=lambda name: together[name]), limits, losses)
        pairs: dict[str, dict[str, float]] = {}
    else:
        pairs = pair_table(everyone, losses)
        groups = _searched(everyone, pairs, limits, losses)
    ordered = sorted((tuple(name for name in everyone if name in group) for group in groups), key=lambda group: everyone.index(group[0]))
    measured = {name: loss for group in ordered for name, loss in losses(group).items()}
    return Grouping(groups=tuple(ordered), losses=measured, together=together, pairs=pairs)


def pair_table(members: Group, losses: Losses) -> dict[str, dict[str, float]]:
    """Member i -> member j -> loss of i in a group with j, dB."""
    table: dict[str, dict[str, float]] = {name: {} for name in members}
    for first, second in combinations(members, 2):
        measured = losses((first, second))
        table[first][second], table[second][first] = measured[first], measured[second]
    return table


def _searched(members: Group, pairs: Mapping[str, Mapping[str, float]], limits: GroupLimits, losses: Losses) -> tuple[Group, ...]:
    """Propose the best way by what is known, measure it, and propose again where a group turns out too much.

    A group that was measured is known by its worst loss; of any other one knows at least what its pairs lose and its measured parts.
    """
    known: dict[frozenset[str], float] = {frozenset((name,)): 0.0 for name in members}
    known |= {frozenset((i, j)): max(pairs[i][j], pairs[j][i]) for i, j in combinations(members, 2)}

    def worst(group: frozenset[str]) -> float:
        return known[group] if group in known else max((loss for part, loss in known.items() if part <= group), default=0.0)

    def spread(group: Group) -> float:
        return sum(pairs[i][j] for i in group for j in group if i != j)

    while True:
        best = _best_partition(members, limits, worst, spread)
        unmeasured = [group for group in best if frozenset(group) not in known]
        if not unmeasured:
            return best
        for group in unmeasured:
            known[frozenset(group)] = max(losses(group).values())


def _best_partition(
    members: Group, limits: GroupLimits, worst: Callable[[frozenset[str]], float], spread: Callable[[Group], float]
) -> tuple[Group, ...]:
    """Fewest groups within the loss, of those the ones of least loss among pairs; where there are none, of the smallest worst loss."""
    excess: tuple[float, float, tuple[Group, ...]] | None = None
    for count in range(1, limits.groups + 1):
        within: tuple[float, tuple[Group, ...]] | None = None
        for groups in partitions(members, count):
            loss = max(worst(frozenset(group)) for group in groups)
            cost = sum(spread(group) for group in groups)
            if loss <= limits.loss_db and (within is None or cost < within[0]):
                within = (cost, groups)
            if excess is None or (loss, cost) < excess[:2]:
                excess = (loss, cost, groups)
        if within is not None:
            return within[1]
    assert excess is not None
    return excess[2]


def partitions(members: Group, count: int) -> Iterator[tuple[Group, ...]]:
    """Every way to share out members to so many groups, none of them empty."""
    if count > len(members) or count < 1:
        return
    if count == 1:
        yield (members,)
        return
    *rest, last = members
    for groups in partitions(tuple(rest), count - 1):
        yield (*groups, (last,))
    for groups in partitions(tuple(rest), count):
        for index in range(count):
            yield (*groups[:index], (*groups[index], last), *groups[index + 1 :])


def _one_by_one(members: Sequence[str], limits: GroupLimits, losses: Losses) -> tuple[Group, ...]:
    """Each into the first group that stays within the loss, else a new one, else where the worst loses least."""
    groups: list[Group] = []
    for name in members:
        trials = [max(losses((*group, name)).values()) for group in groups]
        fitting = [index for index, loss in enumerate(trials) if loss <= limits.loss_db]
        if not fitting and len(groups) < limits.groups:
            groups.append((name,))
            continue
        index = fitting[0] if fitting else min(range(len(groups)), key=trials.__getitem__)
        groups[index] = (*groups[index], name)
    return tuple(groups)
