"""Buffers in memory under a byte budget: the least recently used go first, pinned ones never.

Buffers that are let go of live until their last user lets go of them too, such as a graph that is bound to them: nothing is taken from a
running request. As long as they live they are counted, and found when they are asked for again. So memory stays within the budget, or
where that is too small, within what is pinned, in use, being read, and was asked for last.
"""

from __future__ import annotations

import logging
import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from time import perf_counter
from weakref import WeakValueDictionary

from quad.core.errors import UsageError, mismatch
from quad.runtime.adapters.buffers import Buffers, MakeRoom

_LOG = logging.getLogger(__name__)

# Reads buffers; told how to make room, it does so once it knows how many bytes they will take, and before they take them.
Read = Callable[[MakeRoom], Buffers]


@dataclass(kw_only=True)
class CacheCounters:
    """The figures of a cache since it began.

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
        self.counters = CacheCounters()
        self._budget = budget_bytes
        self._lock = Lock()
        self._readers: dict[str, Read] = {}
        self._resident: OrderedDict[str, Buffers] = OrderedDict()  # the least recently used first
        self._alive: WeakValueDictionary[str, Buffers] = WeakValueDictionary()  # evicted ones too, while somebody uses them
        self._sizes: list[tuple[weakref.ref[Buffers], int]] = []
        self._reserved: dict[object, int] = {}  # read -> bytes that it made room for
        self._loading: dict[str, Future[Buffers]] = {}
        self._pins: Counter[str] = Counter()

    def register(self, name: str, read: Read) -> None:
        """Read a name's buffers with `read` from now on; those it had are let go of."""
        with self._lock:
            self._readers[name] = read
            self._drop(name)

    def unregister(self, name: str) -> None:
        """The name is no adapter's any more; its buffers are let go of."""
        with self._lock:
            self._readers.pop(name, None)
            self._drop(name)

    def clear(self) -> None:
        """Let go of all buffers; names stay registered."""
        with self._lock:
            for name in self._readers:
                self._drop(name)

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
            buffers = self._find(name)
            if not hint:
                self.counters.hits += buffers is not None
                self.counters.misses += buffers is None
            if buffers is not None:
                return buffers
            is_first = name not in self._loading
            future: Future[Buffers] = self._loading.setdefault(name, Future())
            read = self._readers[name]
        return self._load(name, read, future) if is_first else future.result()

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
            self._sizes.append((weakref.ref(buffers), size))
            self._trim()

    def size_bytes(self) -> int:
        """Memory of all buffers that live: those that are kept, and those that are in use beside them."""
        with self._lock:
            return self._used_bytes()

    def _load(self, name: str, read: Read, future: Future[Buffers]) -> Buffers:
        def make_room(size: int) -> None:
            with self._lock:
                self._free(size, list(self._resident))
                self._reserved[future] = size

        start = perf_counter()
        # Reading: without the lock, so that others may be read and found meanwhile.
        try:
            buffers = read(make_room)
        except BaseException as error:
            with self._lock:
                self._finish(name, future)
            future.set_exception(error)
            del future, make_room  # they hold the error, the error this frame
            raise
        # Taking up: kept under its name, unless that was given to another adapter meanwhile.
        with self._lock:
            size, is_current = self._finish(name, future)
            self._sizes.append((weakref.ref(buffers), size))
            self.counters.loads += 1
            self.counters.load_ms += (perf_counter() - start) * 1e3
            if is_current:
                self._keep(name, buffers)
        _LOG.debug("adapter %s: read, %d bytes", name, size)
        future.set_result(buffers)
        return buffers

    # What follows is called with the lock held.

    def _finish(self, name: str, future: Future[Buffers]) -> tuple[int, bool]:
        """Bytes that a read made room for, and whether they are those of the name still."""
        is_current = self._loading.get(name) is future
        if is_current:
            del self._loading[name]
        return self._reserved.pop(future, 0), is_current

    def _find(self, name: str) -> Buffers | None:
        buffers = self._alive.get(name)
        if buffers is not None:
            self._keep(name, buffers)
        return buffers

    def _keep(self, name: str, buffers: Buffers) -> None:
        self._resident[name] = buffers
        self._resident.move_to_end(name)
        self._alive[name] = buffers
        self._trim()

    def _trim(self) -> None:
        self._free(0, list(self._resident)[:-1])

    def _free(self, size: int, names: Collection[str]) -> None:
        """Let go of these names, the first first, until `size` bytes more are within the budget."""
        if self._budget is None:
            return
        for name in names:
            if self._used_bytes() + sum(self._reserved.values()) + size <= self._budget:
                return
            if not self._pins[name]:
                del self._resident[name]
                self.counters.evictions += 1
                _LOG.debug("adapter %s: evicted from memory", name)

    def _drop(self, name: str) -> None:
        self._resident.pop(name, None)
        self._alive.pop(name, None)
        self._loading.pop(name, None)

    def _used_bytes(self) -> int:
        self._sizes = [(buffers, size) for buffers, size in self._sizes if buffers() is not None]
        return sum(size for _, size in self._sizes)
