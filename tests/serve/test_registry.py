"""When a server gives requests up: pure decisions, as laws."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from quad.runtime.request import Request
from quad.serve.limits import Limits
from quad.serve.pictures import held_bytes
from quad.serve.registry import RequestRecord, overdue, surplus
from tests.serve.fake import FakeTicket, an_output

LIMITS = Limits(lease_s=10, time_limit_s=100, finished_s=50)
TIMES = st.floats(0, 1000, allow_nan=False)


def _entry(number: int = 0, **facts: Any) -> RequestRecord:
    ticket: Any = FakeTicket(number, Request(), "")
    return RequestRecord(id=f"r{number}", ticket=ticket, held_bytes=0, **{"asked_at": 0.0, **facts})


def _ended(number: int, at: float, side: int) -> RequestRecord:
    entry = _entry(number)
    entry.ticket.end("done", an_output(side))
    entry.end(entry.ticket.result(), at)
    return entry


@given(asked=TIMES, now=TIMES)
def test_a_request_lives_as_long_as_somebody_asks_after_it_or_listens(asked: float, now: float) -> None:
    assert (overdue(_entry(asked_at=asked), LIMITS, now) == "lease") == (now - asked > LIMITS.lease_s)
    assert overdue(_entry(asked_at=asked, listeners=1), LIMITS, now) is None


@given(started=TIMES, now=TIMES, listeners=st.integers(0, 1))
def test_no_listener_makes_a_request_run_for_longer(started: float, now: float, listeners: int) -> None:
    found = overdue(_entry(started_at=started, asked_at=now, listeners=listeners), LIMITS, now)
    assert (found == "time") == (now - started > LIMITS.time_limit_s)


@given(ended=TIMES, asked=TIMES, now=TIMES)
def test_a_finished_one_is_kept_from_its_end_and_from_the_last_question(ended: float, asked: float, now: float) -> None:
    found = overdue(_entry(ended_at=ended, asked_at=asked), LIMITS, now)
    assert (found == "old") == (now - max(ended, asked) > LIMITS.finished_s)


@given(st.lists(st.tuples(TIMES, st.integers(1, 8)), max_size=12), st.integers(1, 6), st.integers(0, 1000))
def test_what_is_kept_is_within_bounds_and_the_newest(made: list[tuple[float, int]], most: int, most_bytes: int) -> None:
    ended = [_ended(number, at, side) for number, (at, side) in enumerate(made)]
    limits = Limits(max_finished=most, max_finished_bytes=most_bytes)
    gone = surplus(ended, limits)
    kept = [entry for entry in ended if entry not in gone]
    assert len(kept) <= most
    assert sum(held_bytes(entry.picture) for entry in kept) <= most_bytes or len(kept) == 1  # which nobody could fetch otherwise
    assert bool(kept) == bool(ended)
    assert all((a.ended_at or 0) <= (b.ended_at or 0) for a in gone for b in kept)
    if gone:  # not one too many
        back = [*kept, gone[-1]]
        assert len(back) > most or sum(held_bytes(entry.picture) for entry in back) > most_bytes
