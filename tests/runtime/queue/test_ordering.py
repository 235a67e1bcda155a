"""The line as a law: whatever comes and whenever, nobody is passed more often than the rules allow, and nobody is lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quad.runtime.queue.ordering import Key, Moment, Waiting, adapter_key, choose, expired, misses, without

PACE = 1.0


@dataclass(frozen=True)
class Arrival:
    """A request to come: so many pictures after the one before it."""

    gap: float
    adapter: str
    priority: int
    patience: float | None  # seconds to its deadline


@dataclass
class Served:
    """What became of a sequence of arrivals; pictures take `PACE` seconds of a clock that is not the machine's."""

    begun: list[Waiting] = field(default_factory=list)
    ahead: dict[int, int] = field(default_factory=dict)  # in line, or at work, on arrival
    before: dict[int, int] = field(default_factory=dict)  # pictures begun between arrival and own begin
    gone: list[Waiting] = field(default_factory=list)
    inversions: list[tuple[Waiting, Sequence[Waiting]]] = field(default_factory=list)
    switches: int = 0


def serve(arrivals: Sequence[Arrival], most_overtaken: int) -> Served:
    """The scheduler's loop, with nothing in it but its decisions."""
    found, line, now, bound = Served(), tuple[Waiting, ...](), 0.0, None
    due, at = [], 0.0
    for number, one in enumerate(arrivals):
        at += one.gap
        due.append((at, number, one))
    while due or line:
        if not line:
            now = max(now, due[0][0])
        while due and due[0][0] <= now:
            at, number, one = due.pop(0)
            deadline = None if one.patience is None else at + one.patience
            found.ahead[number], found.before[number] = len(line), 0
            line += (Waiting(number=number, key=adapter_key({one.adapter: 1.0}), priority=one.priority, deadline_s=deadline),)
        late = expired(line, now)
        found.gone += late
        line = tuple(one for one in line if one not in late)
        if not line:
            continue
        chosen = choose(line, Moment(now, bound, PACE), most_overtaken)
        found.inversions.append((chosen, line))
        line = without(line, chosen)
        for one in line:
            found.before[one.number] += 1
        found.switches += chosen.key != bound
        found.begun.append(chosen)
        bound, now = chosen.key, now + PACE
    return found


ARRIVALS = st.lists(
    st.builds(
        Arrival,
        gap=st.floats(0, 3),
        adapter=st.sampled_from("abc"),
        priority=st.integers(-2, 2),
        patience=st.none() | st.floats(0.1, 20),
    ),
    min_size=1,
    max_size=60,
)
BOUND = st.integers(0, 6)


@given(ARRIVALS, BOUND)
def test_none_is_lost_and_none_is_served_twice(arrivals: list[Arrival], most: int) -> None:
    found = serve(arrivals, most)
    assert sorted(one.number for one in found.begun + found.gone) == list(range(len(arrivals)))


@given(ARRIVALS, BOUND)
def test_waiting_is_bounded(arrivals: list[Arrival], most: int) -> None:
    """Overtaken at most so often; and begun after at most those that stood in line on arrival, and so many more."""
    found = serve(arrivals, most)
    assert max(one.overtaken for one in [*found.begun, *found.gone]) <= most
    for one in found.begun:
        assert found.before[one.number] <= found.ahead[one.number] + most


@given(ARRIVALS, BOUND)
def test_a_lower_priority_goes_first_only_at_the_end_of_its_patience(arrivals: list[Arrival], most: int) -> None:
    for chosen, line in serve(arrivals, most).inversions:
        if any(one.priority > chosen.priority for one in line):
            assert chosen.overtaken == most


@given(ARRIVALS)
def test_without_any_overtaking_who_came_first_goes_first(arrivals: list[Arrival]) -> None:
    numbers = [one.number for one in serve(arrivals, 0).begun]
    assert numbers == sorted(numbers)


@given(ARRIVALS, BOUND)
def test_who_is_out_of_time_is_never_begun(arrivals: list[Arrival], most: int) -> None:
    found = serve(arrivals, most)
    assert not {one.number for one in found.begun} & {one.number for one in found.gone}
    assert all(one.deadline_s is not None for one in found.gone)


def test_a_stream_of_higher_priorities_starves_nobody() -> None:
    urgent = [Arrival(PACE, "a", 5, None)] * 50
    found = serve([Arrival(0.0, "a", 5, None), Arrival(0.0, "b", 0, None), *urgent], 8)
    assert [one.number for one in found.begun].index(1) <= 1 + 8


def test_equal_requests_are_grouped_by_adapter() -> None:
    mixed = [Arrival(0.0, adapter, 0, None) for adapter in "ababab"]
    assert serve(mixed, 8).switches == 2
    assert serve(mixed, 0).switches == 6
    assert 2 < serve(mixed, 1).switches < 6


def test_the_order_among_those_that_may_go() -> None:
    a, b = adapter_key({"a": 1.0}), adapter_key({"b": 1.0})
    line = (
        Waiting(number=0, key=b),
        Waiting(number=1, key=a),
        Waiting(number=2, key=b, deadline_s=30.0),
        Waiting(number=3, key=b, deadline_s=11.0),
        Waiting(number=4, key=b, priority=1),
        Waiting(number=5, key=b, priority=1, overtaken=8),
    )
    order: list[int] = []
    while line:
        chosen = choose(line, Moment(10.0, a, PACE), 100 if order else 8)
        order.append(chosen.number)
        line = tuple(one for one in line if one is not chosen)
    assert order == [5, 4, 3, 1, 2, 0]  # out of patience, priority, near its end, adapters, deadline, arrival


def test_adapters_are_the_same_in_any_order() -> None:
    assert adapter_key({"a": 1.0, "b": 0.5}) == adapter_key({"b": 0.5, "a": 1.0}) != adapter_key({"a": 1.0})
    base: Key = adapter_key({})
    assert base == ()


@pytest.mark.parametrize(
    ("deadline", "left", "fastest", "says"),
    [(None, 99, 9.0, False), (20.0, 5, 2.0, False), (20.0, 6, 2.0, True), (9.0, 0, 0.0, True), (20.0, 0, 9.0, False)],
)
def test_what_cannot_end_in_time(deadline: float | None, left: int, fastest: float, says: bool) -> None:
    assert misses(deadline, 10.0, left, fastest) is says
