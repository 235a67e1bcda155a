"""An engine that answers a question once: for who tries graphs and stores their answers, and asks the same several times.

What is compared is numbers: those that are bound and those of the call, by their digests, whatever arrays hold them. A graph on a fixed
number of threads gives the same bits again, so that its first answer stands.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from threading import Lock
from typing import Any, Protocol, runtime_checkable
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from quad.core.storage.reading import reading_from
from quad.runtime.engines.engine import Arrays, Engine, PreparedInputs, Shape, SwitchSession
from quad.runtime.engines.float_types import in_bf16

FileId = tuple[int, int]  # device and inode
Answers = dict[bytes, NDArray[Any]]


@runtime_checkable
class Shareable(Protocol):
    """A session whose graph others can run too, at the same time and with inputs of their own."""

    def twin(self) -> SwitchSession:
        """The same loaded graph, nothing bound."""
        ...


class MemoEngine:
    """An engine whose sessions remember answers; a graph that is in memory and can be shared is not loaded again.

    All methods may be called from any thread.
    """

    def __init__(self, engine: Engine, kept: Collection[Path] = ()) -> None:
        """Args:
        kept: graph files that stay in memory once they are loaded, as far as sessions can share them.
        """
        self._engine = engine
        self._kept = {_file_id(path) for path in kept}
        self._held: list[SwitchSession] = []
        self._loaded: WeakValueDictionary[str, SwitchSession] = WeakValueDictionary()
        self._lock = Lock()
        self._turns: dict[str, Lock] = {}
        self._answers: Answers = {}

    @property
    def name(self) -> str:
        return self._engine.name

    def keeps(self, model_file: Path) -> bool:
        """Whether this graph stays in memory once it is loaded."""
        return _file_id(model_file) in self._kept

    def in_bf16(self) -> Engine | None:
        """See `quad.runtime.engines.float_types`; its answers are not remembered."""
        return in_bf16(self._engine)

    def load(self, model_file: Path, threads: int, lean: bool = False) -> SwitchSession:
        """See `Engine.load`."""
        graph = f"{_file_id(model_file)} {threads} {lean}"
        with self._lock:
            turn = self._turns.setdefault(graph, Lock())
        with turn:
            first = self._loaded.get(graph)
            if first is None:
                first = self._engine.load(model_file, threads, lean)
                if not isinstance(first, Shareable):
                    return _MemoSession(first, first=first, graph=graph, answers=self._answers)
                self._loaded[graph] = first
                if self.keeps(model_file):
                    self._held.append(first)
            assert isinstance(first, Shareable)
            return _MemoSession(first.twin(), first=first, graph=graph, answers=self._answers)


class _MemoSession:
    """A `SwitchSession` that runs its graph where no answer is known."""

    def __init__(self, session: SwitchSession, *, first: SwitchSession, graph: str, answers: Answers) -> None:
        """Args:
        first: which the session shares its graph with; as long as it is there the graph is not loaded again.
        graph: tells it from others.
        answers: of all graphs, by the digest of a question.
        """
        self._session, self._first, self._graph, self._answers = session, first, graph, answers
        self._bound: dict[str, NDArray[Any]] = {}
        self._digests: dict[str, bytes] = {}  # of what is bound; empty where they were not asked for yet

    @property
    def inputs(self) -> Mapping[str, Shape]:
        return self._session.inputs

    @property
    def threads(self) -> int:
        return self._session.threads

    def prepare(self, inputs: Arrays) -> PreparedInputs:
        """See `SwitchSession.prepare`."""
        return self._session.prepare(inputs)

    def lay_out(self, prepared: PreparedInputs) -> None:
        """See `SwitchSession.lay_out`."""
        self._session.lay_out(prepared)

    def bind(self, inputs: Arrays | PreparedInputs) -> None:
        """See `SwitchSession.bind`."""
        prepared = inputs if isinstance(inputs, PreparedInputs) else self._session.prepare(inputs)
        self._session.bind(prepared)
        self._bound |= prepared.arrays
        self._digests = {}

    def run(self, inputs: Arrays) -> NDArray[Any]:
        """See `Session.run`."""
        question = self._question(inputs)
        if question not in self._answers:
            self._answers[question] = self._session.run(inputs)
        return self._answers[question].copy()

    def run_all(self, inputs: Arrays) -> list[NDArray[Any]]:
        """See `SwitchSession.run_all`; nothing is remembered."""
        return self._session.run_all(inputs)

    def _question(self, inputs: Arrays) -> bytes:
        self._digests = self._digests or _digests(self._bound)
        every = {**self._digests, **_digests(inputs)}
        return hashlib.sha256(b"".join([self._graph.encode(), *(f"\n{name} ".encode() + every[name] for name in sorted(every))])).digest()


def _digests(arrays: Arrays) -> dict[str, bytes]:
    """Of each array's type, shape and numbers; one that has several names is looked at once."""
    distinct = {id(array): array for array in arrays.values()}
    digests = {number: _digest(array) for number, array in distinct.items()}
    return {name: digests[id(array)] for name, array in arrays.items()}


def _digest(array: NDArray[Any]) -> bytes:
    hasher = hashlib.sha256(f"{array.dtype.str} {array.shape}\n".encode())
    hasher.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return hasher.digest()


def _file_id(path: Path) -> FileId:
    with reading_from(path):
        status = path.stat()
    return status.st_dev, status.st_ino
