"""Any sequence of uses, pins, replacements and hints, against a model of memory under a budget."""

from __future__ import annotations

from contextlib import AbstractContextManager

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from quad.runtime.adapters.buffers import Buffers, MakeRoom
from quad.runtime.adapters.cache import BufferCache

SIZES = {"a": 10, "b": 20, "c": 30, "d": 40, "huge": 150}
BUDGET = 100
NAMES = st.sampled_from(sorted(SIZES))


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
        def read(make_pair: MakeRoom) -> Buffers:
            make_pair(SIZES[name])
            self.name_of.append(name)
            return Buffers({name: np.array([len(self.name_of) - 1])})

        self.cache.register(name, read)

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
        loads = self.cache.counters.loads
        for name, number in list(self.current.items()):
            if number in self.living() and (name in self.pinned() or any(number == held for held, _ in self.held)):
                assert self.cache.get(name, hint=True)[name] == number
                self.use(name, number)
                self.free(0, self.kept[:-1])
        assert self.cache.counters.loads == loads

    @invariant()
    def figures_add_up(self) -> None:
        tally = self.cache.counters
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
