"""Inputs on their way into a graph: checked once, then bound by address. What engines share.

An address carries no type: a wrong array must be stopped before it becomes one, and the array must live as long as it is bound.
"""

from __future__ import annotations

import abc
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from quad.core.errors import BackendError, mismatch

Arrays = Mapping[str, NDArray[Any]]
Shape = tuple[int | None, ...]


class GraphInputs:
    """What a graph takes: input name -> shape (None for a dynamic axis) and element type, in graph order."""

    def __init__(self, graph: str, shapes: Mapping[str, Shape], dtypes: Mapping[str, DTypeLike]) -> None:
        """Args:
        graph: its name in messages.
        dtypes: of the inputs that NumPy has a type for; no array fits the others.
        """
        self.shapes = dict(shapes)
        self._dtypes = {name: np.dtype(dtype) for name, dtype in dtypes.items()}
        self._where = f"graph {graph}"

    def fitting(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """The arrays, each laid out without gaps; one that already is stays the same array.

        Raises:
            BackendError: the graph has no such input, or not of that type and shape.
        """
        arrays = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        for name, array in arrays.items():
            self._check(name, array)
        return arrays

    def check_complete(self, *given: Arrays) -> None:
        """Raises:
        BackendError: an input is in none of `given`.
        """
        missing = [name for name in self.shapes if not any(name in some for some in given)]
        if missing:
            raise BackendError(mismatch(self._where, f"{len(self.shapes)} inputs", f"none for {missing[0]}", "bind it before run"))

    def _check(self, name: str, array: NDArray[Any]) -> None:
        where, then = f"{self._where}, input {name}", "this is a bug or another graph's adapter"
        if name not in self.shapes:
            raise BackendError(mismatch(where, "an input of the graph", "none of that name", then))
        shape, dtype = self.shapes[name], self._dtypes.get(name)
        fits = len(shape) == array.ndim and all(n is None or n == m for n, m in zip(shape, array.shape, strict=True))
        if not fits or dtype != array.dtype:
            raise BackendError(mismatch(where, f"{dtype} {shape}", f"{array.dtype} {array.shape}", then))


@dataclass(frozen=True)
class Ready:
    """Inputs that one session has checked and wrapped: binding them again costs next to nothing.

    Args:
        owner: refers to the session that made it, and no other may bind it; weakly, so that a dropped session is gone at once.
        arrays: keeps the memory alive.
        values: input name -> the engine's own tensor over that memory.
    """

    owner: weakref.ref[object]
    arrays: Arrays
    values: Mapping[str, Any]

    def covers(self, other: Ready) -> bool:
        """Whether nothing of the other stays bound once this is."""
        return other is self or other.values.keys() <= self.values.keys()

    def of(self, session: object) -> Ready:
        """Itself, for the session that made it.

        Raises:
            BackendError: for another one.
        """
        if self.owner() is not session:
            raise BackendError(mismatch("bind", "inputs made ready by this session", "another session's", "call prepare on this one"))
        return self


class BoundSession(abc.ABC):
    """A `Session` but for four things that each engine does its own way."""

    def __init__(self, inputs: GraphInputs) -> None:
        self._inputs = inputs
        # Engines hold addresses only: what is bound is kept alive here, the latest last.
        self._held: list[Ready] = []

    @property
    def inputs(self) -> Mapping[str, Shape]:
        return MappingProxyType(self._inputs.shapes)

    @property
    @abc.abstractmethod
    def threads(self) -> int:
        """CPU threads that the engine says it uses for this graph."""

    @abc.abstractmethod
    def _wrap(self, array: NDArray[Any]) -> Any:
        """The engine's tensor over an array's memory."""

    @abc.abstractmethod
    def _put(self, name: str, value: Any) -> None:
        """Make a wrapped array the graph's input from now on."""

    @abc.abstractmethod
    def _execute(self) -> NDArray[Any]:
        """Run on what was put; a new array each time.

        Raises:
            BackendError: the engine failed.
        """

    def prepare(self, inputs: Arrays) -> Ready:
        """See `Session.prepare`."""
        arrays = self._inputs.fitting(inputs)
        return Ready(weakref.ref(self), arrays, {name: self._wrap(array) for name, array in arrays.items()})

    def bind(self, inputs: Arrays | Ready) -> None:
        """See `Session.bind`; all inputs are checked before the first is bound."""
        ready = inputs.of(self) if isinstance(inputs, Ready) else self.prepare(inputs)
        for name, value in ready.values.items():
            self._put(name, value)
        self._held = [*(held for held in self._held if not ready.covers(held)), ready]

    def run(self, inputs: Arrays) -> NDArray[Any]:
        """See `Session.run`."""
        self._inputs.check_complete(inputs, *(held.arrays for held in self._held))
        step = self.prepare(inputs)
        try:
            for name, value in step.values.items():
                self._put(name, value)
            return self._execute()
        finally:
            for held in self._held:
                for name in step.values.keys() & held.values.keys():
                    self._put(name, held.values[name])


def first_line(error: BaseException) -> str:
    """What a library's error says first; its class where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
