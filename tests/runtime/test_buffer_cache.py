"""Memory under a budget, against a model of it; and what several threads may do at once."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from quad.core.errors import InputError, UsageError
from quad.runtime.buffer_cache import BufferCache, MakeRoom
from quad.runtime.buffers import Buffers

SIZES = {"a": 10, "b": 20, "c": 30, "d": 40, "huge": 150}
BUDGET = 100
NAMES = st.sampled_from(sorted(SIZES))
WAIT_S = 60


class Model(RuleBasedStateMachine):
    """Each reading has a number. `kept` holds those in memory, the latest used last; `held` those that somebody uses, each once or more."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = BufferCache(BUDGET)
        self.name_of: list[str] = []
        self.current: dict[str, int] = {}
        self.kept: list[int] = []
        self.held: list[tuple[int, Buffers]] = []
        self.pins: list[tuple[list[str], AbstractContextManager[None]]] = []
        self.uses = self.hits = 0
        for name in SIZES:
            self.admit(name)

    def admit(self, name: str) -> None:
        def read(make_room: MakeRoom) -> Buffers:
            make_room(SIZES[name])
            self.name_of.append(name)
            return Buffers({name: np.array([len(self.name_of) - 1])})

        self.cache.admit(name, read)

    @rule(name=NAMES, hold=st.booleans(), hint=st.booleans())
    def ask(self, name: str, hold: bool, hint: bool) -> None:
        known = self.current.get(name)
        there = known is not None and known in self.living()
        buffers = self.cache.get(name, hint)
        (found,) = buffers[name]
        assert found == (known if there else len(self.name_of) - 1)
        self.uses += not hint
        self.hits += there and not hint
        if not there:
            self.free(SIZES[name], self.kept)
        self.use(name, int(found))
        self.free(0, self.kept[:-1])
        if hold:
            self.held.append((int(found), buffers))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def let_go(self, data: st.DataObject) -> None:
        del self.held[data.draw(st.integers(0, len(self.held) - 1))]

    @rule(names=st.lists(NAMES, max_size=3, unique=True))
    def pin(self, names: list[str]) -> None:
        pinned = self.cache.pinned(names)
        pinned.__enter__()
        self.pins.append((names, pinned))
        for name in names:
            if name in self.current and self.current[name] in self.living():
                self.use(name, self.current[name])
                self.free(0, self.kept[:-1])

    @precondition(lambda self: self.pins)
    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        self.pins.pop(data.draw(st.integers(0, len(self.pins) - 1)))[1].__exit__(None, None, None)
        self.free(0, self.kept[:-1])

    @rule(name=NAMES)
    def replace(self, name: str) -> None:
        self.admit(name)
        self.kept = [number for number in self.kept if number != self.current.get(name)]
        self.current.pop(name, None)

    @rule()
    def clear(self) -> None:
        self.cache.clear()
        self.kept, self.current = [], {}

    @invariant()
    def memory_is_counted_and_bounded(self) -> None:
        assert self.cache.size_bytes() == self.size(self.living())
        pinned = {number for number in self.kept if self.name_of[number] in self.pinned()}
        assert self.size(self.living()) <= max(BUDGET, self.size(pinned | {number for number, _ in self.held} | set(self.kept[-1:])))

    @invariant()
    def what_is_pinned_or_in_use_is_found(self) -> None:
        loads = self.cache.tally.loads
        for name, number in list(self.current.items()):
            if number in self.living() and (name in self.pinned() or any(number == held for held, _ in self.held)):
                assert self.cache.get(name, hint=True)[name] == number
                self.use(name, number)
                self.free(0, self.kept[:-1])
        assert self.cache.tally.loads == loads

    @invariant()
    def figures_add_up(self) -> None:
        tally = self.cache.tally
        assert (tally.hits, tally.misses, tally.loads) == (self.hits, self.uses - self.hits, len(self.name_of))

    def living(self) -> set[int]:
        return {*self.kept, *(number for number, _ in self.held)}

    def pinned(self) -> set[str]:
        return {name for names, _ in self.pins for name in names}

    def size(self, numbers: set[int]) -> int:
        return sum(SIZES[self.name_of[number]] for number in numbers)

    def use(self, name: str, number: int) -> None:
        self.current[name] = number
        self.kept = [*(other for other in self.kept if other != number), number]

    def free(self, size: int, numbers: list[int]) -> None:
        for number in list(numbers):
            if self.size(self.living()) + size <= BUDGET:
                return
            if self.name_of[number] not in self.pinned():
                self.kept.remove(number)


Model.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
TestAnySequence = Model.TestCase


def test_pinned_before_its_last_user_lets_go_it_stays() -> None:
    cache = BufferCache(10)
    for name in "xy":
        cache.admit(name, lambda room, name=name: (room(10), Buffers({name: np.zeros(1)}))[1])  # type: ignore[misc]
    used = cache.get("x")
    cache.get("y")  # takes the place of x, which lives on because it is used
    with cache.pinned(["x"]):
        del used
        assert (cache.size_bytes(), [*cache.get("x")], cache.tally.loads) == (10, ["x"], 2)


class Gate:
    """A reader that waits to be let through, and counts how often it was asked."""

    def __init__(self, size: int = 10, then: Callable[[], Buffers] = lambda: Buffers({"x": np.zeros(1)})) -> None:
        self.entered, self.open = threading.Event(), threading.Event()
        self.asked = 0
        self._size, self._then = size, then

    def __call__(self, make_room: MakeRoom) -> Buffers:
        self.asked += 1
        make_room(self._size)
        self.entered.set()
        assert self.open.wait(WAIT_S)
        return self._then()


def test_threads_that_ask_at_once_wait_for_one_reading() -> None:
    cache, gate = BufferCache(), Gate()
    cache.admit("x", gate)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(cache.get, "x")
        assert gate.entered.wait(WAIT_S)
        others = [pool.submit(cache.get, "x") for _ in range(3)]
        while cache.tally.misses < 4:  # until all of them wait
            threading.Event().wait(0.001)
        gate.open.set()
        assert {id(future.result(WAIT_S)) for future in (first, *others)} == {id(first.result())}
    assert (gate.asked, cache.tally.misses, cache.tally.hits) == (1, 4, 0)


def test_an_error_reaches_all_who_wait_and_the_next_one_tries_again() -> None:
    def damaged() -> Buffers:
        raise InputError("damaged")

    cache, gate = BufferCache(5), Gate(then=damaged)
    cache.admit("x", gate)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.get, "x")
        assert gate.entered.wait(WAIT_S)
        second = pool.submit(cache.get, "x")
        while cache.tally.misses < 2:
            threading.Event().wait(0.001)
        gate.open.set()
        for future in (first, second):
            with pytest.raises(InputError, match="damaged"):
                future.result(WAIT_S)
    with pytest.raises(InputError, match="damaged"):
        cache.get("x")
    assert (gate.asked, cache.size_bytes(), cache.tally.loads) == (2, 0, 0)


def test_warm_buffers_do_not_wait_for_a_reading() -> None:
    cache, gate = BufferCache(), Gate()
    cache.admit("slow", gate)
    cache.admit("x", lambda _: Buffers())
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
    cache.admit("x", old)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(cache.get, "x")
        assert old.entered.wait(WAIT_S)
        if successor:
            cache.admit("x", lambda _: Buffers({"new": np.zeros(1)}))
            assert [*cache.get("x")] == ["new"]
        else:
            cache.forget("x")
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
    cache.admit("warm", lambda room: (room(30), Buffers())[1])
    cache.get("warm")
    with ThreadPoolExecutor(2) as pool:
        for name, gate in zip("ab", gates, strict=True):
            cache.admit(name, gate)
            pool.submit(cache.get, name)
            assert gate.entered.wait(WAIT_S)
        meanwhile = cache.size_bytes()
        for gate in gates:
            gate.open.set()
    assert meanwhile == 0, "60 on their way leave room for 30, 60 and 40 do not"
    assert (cache.size_bytes(), cache.tally.evictions) == (100, 1)


def test_many_threads_leave_it_within_its_budget() -> None:
    cache = BufferCache(BUDGET)
    for name, size in SIZES.items():
        cache.admit(name, lambda room, name=name, size=size: (room(size), Buffers({name: np.zeros(1)}))[1])  # type: ignore[misc]

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
    assert cache.tally.hits + cache.tally.misses == asked
    cache.get("a")
    assert cache.size_bytes() <= BUDGET
