"""The fewest groups: against every way to share out, on losses that grow with a group."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quad.quantize.profile.groups import MOST_SEARCHED, Group, Grouping, GroupLimits, Losses, choose_groups, partitions


def _by_loudness(loudness: Mapping[str, float]) -> Losses:
    """Ranges as wide as the loudest member: each loses by how much it is quieter, and a little more for every other member."""

    def losses(group: Group) -> dict[str, float]:
        loudest = max(loudness[name] for name in group)
        return {name: loudest - loudness[name] + 0.01 * (len(group) - 1) for name in group}

    return losses


def _worst(grouping: Grouping) -> float:
    return max(grouping.losses.values())


def test_every_way_to_share_out_comes_once() -> None:
    counts = {(4, 1): 1, (4, 2): 7, (4, 3): 6, (4, 4): 1, (6, 3): 90, (3, 4): 0}  # Stirling's, of the second kind
    for (members, count), expected in counts.items():
        ways = list(partitions(tuple("abcdef"[:members]), count))
        assert len({frozenset(map(frozenset, way)) for way in ways}) == len(ways) == expected
        assert all(all(way) and sorted("".join(map("".join, way))) == sorted("abcdef"[:members]) for way in ways)


@given(st.lists(st.floats(0, 20), min_size=2, max_size=6), st.integers(1, 4), st.floats(0, 10))
def test_no_way_has_fewer_groups_or_a_smaller_loss(levels: list[float], most: int, loss_db: float) -> None:
    loudness = {f"a{number}": level for number, level in enumerate(levels)}
    losses, members = _by_loudness(loudness), tuple(loudness)
    chosen = choose_groups(members, GroupLimits(loss_db, most), losses)
    assert sorted(name for group in chosen.groups for name in group) == sorted(members)
    assert len(chosen.groups) <= most
    assert chosen.losses == {name: loss for group in chosen.groups for name, loss in losses(group).items()}

    def worst_of(labels: tuple[int, ...]) -> float:
        groups = [tuple(name for name, label in zip(members, labels, strict=True) if label == number) for number in set(labels)]
        return max(max(losses(group).values()) for group in groups)

    ways = {labels: worst_of(labels) for labels in product(range(most), repeat=len(members))}
    within = [len(set(labels)) for labels, loss in ways.items() if loss <= loss_db]
    if within:
        assert (len(chosen.groups), _worst(chosen) <= loss_db) == (min(within), True)
    else:
        assert _worst(chosen) == pytest.approx(min(ways.values()))


def test_one_group_where_it_serves_measures_no_pairs() -> None:
    measured: list[Group] = []

    def losses(group: Group) -> dict[str, float]:
        measured.append(group)
        return dict.fromkeys(group, 0.9)

    for limits in (GroupLimits(1.0, 4), GroupLimits(0.1, 1)):
        chosen = choose_groups(("a", "b", "c"), limits, losses)
        assert (chosen.groups, chosen.pairs, chosen.losses) == ((("a", "b", "c"),), {}, chosen.together)
    assert measured == [("a", "b", "c")] * 2


def test_a_group_that_is_more_than_its_pairs_is_found_out() -> None:
    """Two get on, three do not: pairs alone would have taken them together."""
    chosen = choose_groups(tuple("abcd"), GroupLimits(1.0, 4), lambda group: dict.fromkeys(group, 2.0 * (len(group) > 2)))
    assert [len(group) for group in chosen.groups] == [2, 2]


def test_many_are_taken_one_after_the_other() -> None:
    loudness = {f"a{number}": 10.0 * (number % 3) for number in range(MOST_SEARCHED + 4)}
    chosen = choose_groups(tuple(loudness), GroupLimits(1.0, 8), _by_loudness(loudness))
    assert [{loudness[name] for name in group} for group in chosen.groups] == [{0.0}, {10.0}, {20.0}]
    assert choose_groups(tuple(loudness), GroupLimits(1.0, 2), _by_loudness(loudness)).losses.keys() == loudness.keys()
