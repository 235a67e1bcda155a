"""Work behind the caller: in its order, all of it done at the end, and an error is told."""

from __future__ import annotations

import threading
from functools import partial

import pytest

from quad.quantize.observe import side_by_side
from quad.quantize.observe.side_by_side import Behind


@pytest.mark.parametrize("lanes", [1, 2])
def test_pieces_are_done_in_their_order(lanes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(side_by_side, "lanes", lambda: lanes)
    done: list[int] = []
    threads: set[str] = set()

    def work(number: int) -> None:
        done.append(number)
        threads.add(threading.current_thread().name)

    with Behind(most=3) as behind:
        for number in range(20):
            behind.give(partial(work, number))
            assert len(done) >= number - 3
    assert done == list(range(20))
    assert (threading.current_thread().name in threads) == (lanes == 1)


@pytest.mark.parametrize("lanes", [1, 2])
def test_an_error_comes_to_the_caller(lanes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(side_by_side, "lanes", lambda: lanes)
    with pytest.raises(ZeroDivisionError), Behind() as behind:
        behind.give(lambda: [][1 // 0])
