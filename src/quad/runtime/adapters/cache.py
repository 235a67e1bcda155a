"""Buffers in memory under a byte budget: the least recently used go first, pinned ones never.

Buffers that are let go of live until their last user lets go of them too, such as a graph that is bound to them: nothing is taken from a
running request. As long as they live they are counted, and found when they are asked for again. So memory stays within the budget, or
where that is too small, within what is pinned, in use, being read, and was asked for last.
"""

from __future__ import annotations

import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from time import perf_counter

from quad.core.errors import UsageError, mismatch
from quad.runtime.adapters.buffers import Buffers

MakeRoom = Callable[[int], None]
# Reads buffers; told how to make room, it does so once it knows how many bytes they will take, and before they take them.
Read = Callable[[MakeRoom], Buffers]


@dataclass
class Tally:
    """What a cache has done.

    Args:
        hits: uses that found their buffers in memory.
        misses: uses that did not, and waited until somebody had read them.
        evictions: buffers let go of for want of room.
        loads: reads that went well, of uses and of hints.
        load_ms: wall-clock of these reads together.
    """

    hits: int = 0
    misses: int = 0
    evictions: int = 0
    loads: int = 0
    load_ms: float = 0.0


class BufferCache:
    """Buffers by name, each read when first asked for. All methods may be called from any thread."""

    def __init__(self, budget_bytes: int | None = None) -> None:
        """Args:
        budget_bytes: of memory, None for no bound.
        """
        self.tally = Tally()
        self._budget = budget_bytes
        self._lock = Lock()
        self._readers: dict[str, Read] = {}
        self._kept: OrderedDict[str, Buffers] = OrderedDict()  # the least recently used first
        self._known: dict[str, weakref.ref[Buffers]] = {}
        self._living: list[tuple[weakref.ref[Buffers], int]] = []
        self._coming: dict[object, int] = {}  # read -> bytes that it made room for
        self._loading: dict[str, Future[Buffers]] = {}
        self._pins: Counter[str] = Counter()

    def admit(self, name: str, read: Read) -> None:
        """Know how to read a name's buffers from now on; those it had are let go of."""
        with self._lock:
            self._readers[name] = read
            self._let_go(name)

    def forget(self, name: str) -> None:
        """Know a name no more."""
        with self._lock:
            self._readers.pop(name, None)
            self._let_go(name)

    def clear(self) -> None:
        """Let go of all buffers; names stay known."""
        with self._lock:
            for name in self._readers:
                self._let_go(name)

    def get(self, name: str, hint: bool = False) -> Buffers:
        """A name's buffers, from memory or read now; several threads that ask for them at once wait for one reading.

        Args:
            hint: nobody uses them yet; neither a hit nor a miss.

        Raises:
            UsageError: no such name. Whatever its reader raises.
        """
        with self._lock:
            if name not in self._readers:
                raise UsageError(mismatch("adapter", "one that is registered", repr(name), "load it first"))
            found = self._find(name)
            if not hint:
                self.tally.hits += found is not None
                self.tally.misses += found is None
            if found is not None:
                return found
            pending = self._loading.get(name)
            mine = pending is None
            coming: Future[Buffers] = self._loading.setdefault(name, Future())
            read = self._readers[name]
        return self._load(name, read, coming) if mine else coming.result()

    @contextmanager
    def pinned(self, names: Collection[str]) -> Iterator[None]:
        """While inside, buffers of these names that are in memory stay there."""
        with self._lock:
            self._pins.update(set(names))
            for name in names:
                self._find(name)  # let go of and in use still: from now on it is not its user's alone
        try:
            yield
        finally:
            with self._lock:
                self._pins -= Counter(set(names))
                self._trim()

    def count(self, buffers: Buffers, size: int) -> None:
        """Know of buffers that were made elsewhere and are in use: they take memory for as long as they live."""
        with self._lock:
            self._living.append((weakref.ref(buffers), size))
            self._trim()

    def size_bytes(self) -> int:
        """Memory of all buffers that live: those that are kept, and those that are in use beside them."""
        with self._lock:
            return self._living_bytes()

    def _load(self, name: str, read: Read, coming: Future[Buffers]) -> Buffers:
        start = perf_counter()
        try:
            buffers = read(lambda size: self._expect(coming, size))
        except BaseException as error:
            with self._lock:
                self._arrive(name, coming)
            coming.set_exception(error)
            del coming  # it holds the error, the error this frame
            raise
        with self._lock:
            size, wanted = self._arrive(name, coming)
            self._living.append((weakref.ref(buffers), size))
            self.tally.loads += 1
            self.tally.load_ms += (perf_counter() - start) * 1e3
            if wanted:
                self._keep(name, buffers)
        coming.set_result(buffers)
        return buffers

    def _expect(self, coming: Future[Buffers], size: int) -> None:
        with self._lock:
            self._free(size, list(self._kept))
            self._coming[coming] = size

    # What follows is called with the lock held.

    def _arrive(self, name: str, coming: Future[Buffers]) -> tuple[int, bool]:
        """Bytes that a read made room for, and whether they are those of the name still."""
        wanted = self._loading.get(name) is coming
        if wanted:
            del self._loading[name]
        return self._coming.pop(coming, 0), wanted

    def _find(self, name: str) -> Buffers | None:
        known = self._known.get(name)
        buffers = known() if known is not None else None
        if buffers is not None:
            self._keep(name, buffers)
        return buffers

    def _keep(self, name: str, buffers: Buffers) -> None:
        self._kept[name] = buffers
        self._kept.move_to_end(name)
        self._known[name] = weakref.ref(buffers)
        self._trim()

    def _trim(self) -> None:
        self._free(0, list(self._kept)[:-1])

    def _free(self, size: int, names: Collection[str]) -> None:
        """Let go of these names, the first first, until `size` bytes more are within the budget."""
        if self._budget is None:
            return
        for name in names:
            if self._living_bytes() + sum(self._coming.values()) + size <= self._budget:
                return
            if not self._pins[name]:
                del self._kept[name]
                self.tally.evictions += 1

    def _let_go(self, name: str) -> None:
        self._kept.pop(name, None)
        self._known.pop(name, None)
        self._loading.pop(name, None)

    def _living_bytes(self) -> int:
        self._living = [(buffers, size) for buffers, size in self._living if buffers() is not None]
        return sum(size for _, size in self._living)
