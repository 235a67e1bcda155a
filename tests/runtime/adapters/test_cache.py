"""Buffers under a budget, and what several threads may do with them at once."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from quad.core.errors import InputError, UsageError
from quad.runtime.adapters.buffers import Buffers, MakeRoom
from quad.runtime.adapters.cache import BufferCache

SIZES = {"a": 10, "b": 20, "c": 30, "d": 40, "huge": 150}
BUDGET = 100
WAIT_S = 60


def test_pinned_before_its_last_user_lets_go_it_stays() -> None:
    cache = BufferCache(10)
    for name in "xy":
        cache.register(name, lambda room, name=name: (room(10), Buffers({name: np.zeros(1)}))[1])  # type: ignore[misc]
    used = cache.get("x")
    cache.get("y")  # takes the place of x, which lives on because it is used
    with cache.pinned(["x"]):
        del used
        assert (cache.size_bytes(), [*cache.get("x")], cache.counters.loads) == (10, ["x"], 2)


class Gate:
    """A reader that waits to be let through, and counts how often it was asked."""

    def __init__(self, size: int = 10, then: Callable[[], Buffers] = lambda: Buffers({"x": np.zeros(1)})) -> None:
        self.entered, self.open = threading.Event(), threading.Event()
        self.asked = 0
        self._size, self._then = size, then

    def __call__(self, make_pair: MakeRoom) -> Buffers:
        self.asked += 1
        make_pair(self._size)
        self.entered.set()
        assert self.open.wait(WAIT_S)
        return self._then()


def test_threads_that_ask_at_once_wait_for_one_reading() -> None:
    cache, gate = BufferCache(), Gate()
    cache.register("x", gate)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(cache.get, "x")
        assert gate.entered.wait(WAIT_S)
        others = [pool.submit(cache.get, "x") for _ in range(3)]
        while cache.counters.misses < 4:  # until all of them wait
            threading.Event().wait(0.001)
        gate.open.set()
        assert {id(future.result(WAIT_S)) for future in (first, *others)} == {id(first.result())}
    assert (gate.asked, cache.counters.misses, cache.counters.hits) == (1, 4, 0)


def test_an_error_reaches_all_who_wait_and_the_next_one_tries_again() -> None:
    def damaged() -> Buffers:
        raise InputError("damaged")

    cache, gate = BufferCache(5), Gate(then=damaged)
    cache.register("x", gate)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.get, "x")
        assert gate.entered.wait(WAIT_S)
        second = pool.submit(cache.get, "x")
        while cache.counters.misses < 2:
            threading.Event().wait(0.001)
        gate.open.set()
        for future in (first, second):
            with pytest.raises(InputError, match="damaged"):
                future.result(WAIT_S)
    with pytest.raises(InputError, match="damaged"):
        cache.get("x")
    assert (gate.asked, cache.size_bytes(), cache.counters.loads) == (2, 0, 0)


def test_warm_buffers_do_not_wait_for_a_reading() -> None:
    cache, gate = BufferCache(), Gate()
    cache.register("slow", gate)
    cache.register("x", lambda _: Buffers())
    warm = cache.get("x")
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(cache.get, "slow")
        assert gate.entered.wait(WAIT_S)
        assert cache.get("x") is warm
        gate.open.set()
        slow.result(WAIT_S)


@pytest.mark.parametrize("successor", [True, False])
def test_a_name_replaced_or_forgotten_while_it_is_read_is_not_kept(successor: bool) -> None:
    cache, old = BufferCache(), Gate(then=lambda: Buffers({"old": np.zeros(1)}))
    cache.register("x", old)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(cache.get, "x")
        assert old.entered.wait(WAIT_S)
        if successor:
            cache.register("x", lambda _: Buffers({"new": np.zeros(1)}))
            assert [*cache.get("x")] == ["new"]
        else:
            cache.unregister("x")
        old.open.set()
        assert [*asked.result(WAIT_S)] == ["old"], "who asked before gets what it asked for"
        ended = weakref.ref(asked.result())
        del asked
    assert ended() is None
    if successor:
        assert [*cache.get("x")] == ["new"]
    else:
        with pytest.raises(UsageError, match="one that is registered, found 'x'"):
            cache.get("x")


def test_what_is_on_its_way_has_its_room() -> None:
    cache, gates = BufferCache(100), [Gate(60), Gate(40)]
    cache.register("warm", lambda room: (room(30), Buffers())[1])
    cache.get("warm")
    with ThreadPoolExecutor(2) as pool:
        for name, gate in zip("ab", gates, strict=True):
            cache.register(name, gate)
            pool.submit(cache.get, name)
            assert gate.entered.wait(WAIT_S)
        meanwhile = cache.size_bytes()
        for gate in gates:
            gate.open.set()
    assert meanwhile == 0, "60 on their way leave room for 30, 60 and 40 do not"
    assert (cache.size_bytes(), cache.counters.evictions) == (100, 1)


def test_many_threads_leave_it_within_its_budget() -> None:
    cache = BufferCache(BUDGET)
    for name, size in SIZES.items():
        cache.register(name, lambda room, name=name, size=size: (room(size), Buffers({name: np.zeros(1)}))[1])  # type: ignore[misc]

    def work(seed: int) -> int:
        draw = np.random.default_rng(seed)
        for _ in range(200):
            name = str(draw.choice(sorted(SIZES)))
            with cache.pinned([name]):
                before = cache.get(name)
                cache.get(str(draw.choice(sorted(SIZES))))
                assert cache.get(name) is before, "it is pinned"
                del before
        return 600

    with ThreadPoolExecutor(8) as pool:
        asked = sum(pool.map(work, range(8)))
    assert cache.counters.hits + cache.counters.misses == asked
    cache.get("a")
    assert cache.size_bytes() <= BUDGET
