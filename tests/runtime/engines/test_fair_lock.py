"""`FairLock` is given in the order of asking, also to a thread that comes while another one asks again and again."""

from __future__ import annotations

from threading import Event, Thread

import pytest

from quad.runtime.engines import graph as turns
from quad.runtime.engines.graph import FairLock


def _entered(turns: FairLock, order: list[int], number: int) -> Thread:
    """A thread that waits for its turn; returned once it stands in line."""
    before = len(turns._waiting)

    def take() -> None:
        with turns:
            order.append(number)

    thread = Thread(target=take)
    thread.start()
    while len(turns._waiting) == before:
        Event().wait(0.001)
    return thread


def test_first_come_first_served() -> None:
    turns, order = FairLock(), list[int]()
    with turns:
        threads = [_entered(turns, order, number) for number in range(20)]
    for thread in threads:
        thread.join()
    assert order == list(range(20))


def test_who_asks_again_goes_to_the_end_of_the_line() -> None:
    turns, order = FairLock(), list[int]()
    with turns:
        waiting = _entered(turns, order, 1)
    with turns:
        order.append(2)
    waiting.join()
    assert order == [1, 2]


@pytest.mark.parametrize("given", [False, True])
def test_who_is_interrupted_while_waiting_keeps_nobody_out(monkeypatch: pytest.MonkeyPatch, given: bool) -> None:
    """Also where the turn was given just before."""
    one = FairLock()

    class Interrupted:
        asked = 0

        def acquire(self) -> None:
            self.asked += 1
            if self.asked == 2:
                if given:
                    one.__exit__(None, None, None)
                raise KeyboardInterrupt

        def release(self) -> None:
            """Nobody waits for it."""

    with one:
        monkeypatch.setattr(turns, "Lock", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            one.__enter__()
        monkeypatch.undo()
    assert (one._locked, len(one._waiting)) == (False, 0)


def test_an_error_inside_gives_the_turn_on() -> None:
    turns = FairLock()
    with pytest.raises(ValueError), turns:
        raise ValueError
    with turns:
        pass
