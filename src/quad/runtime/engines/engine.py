"""The seam to whatever executes graphs: the protocols that the runtime relies on, and the half of a session that engines share."""

from __future__ import annotations

import abc
import importlib
import logging
import os
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from quad.core.errors import BackendError, CompatibilityError, UsageError, mismatch

_LOG = logging.getLogger(__name__)

Arrays = Mapping[str, NDArray[Any]]
Shape = tuple[int | None, ...]

# Engine name -> module with `open_engine(precision) -> Engine`, imported when chosen; it raises ImportError where its package is missing.
ENGINES = {name: f"quad.runtime.engines.{name}" for name in ("ort", "openvino", "qnn", "litert")}
# Engine name -> what brings its package.
INSTALL = {"ort": "pip install onnxruntime"} | {name: f"pip install 'quad[{name}]'" for name in ("openvino", "qnn", "litert")}


class Runnable(Protocol):
    """One graph with its adapter, as a sampler sees it."""

    @property
    def inputs(self) -> Mapping[str, Shape]:
        """Graph input name -> shape, None for a dynamic axis, in graph order."""
        ...

    def run(self, inputs: Arrays) -> NDArray[Any]:
        """The graph's first output for these and all bound inputs; a new array each time.

        Raises:
            BackendError: an input is missing or does not fit, or the engine failed.
        """
        ...


class Session(Runnable, Protocol):
    """One loaded graph.

    A Protocol because vendors' engines share no class: only these members are relied on.
    """

    def bind(self, inputs: Arrays) -> None:
        """Give inputs that stay until bound again: adapter buffers, once per switch. The arrays must not be written to meanwhile.

        Raises:
            BackendError: the graph has no such input, or not of that type and shape.
        """
        ...


class SwitchSession(Session, Protocol):
    """A loaded graph, as an engine gives it: inputs that come again and again are checked and wrapped once."""

    @property
    def threads(self) -> int:
        """CPU threads that the engine says it uses; it may give fewer than were asked for, never more."""
        ...

    def prepare(self, inputs: Arrays) -> PreparedInputs:
        """Check inputs and wrap them for this session, so that `bind` of the answer is fast. The arrays must not be written to any more.

        Raises:
            BackendError: the graph has no such input, or not of that type and shape.
        """
        ...

    def run_all(self, inputs: Arrays) -> list[NDArray[Any]]:
        """As `run`, every output of the graph."""
        ...

    def lay_out(self, prepared: PreparedInputs) -> None:
        """Do ahead what the first `bind` of these inputs takes long for; any thread may, while another one runs the graph."""
        ...

    def bind(self, inputs: Arrays | PreparedInputs) -> None:
        """See `Session.bind`; arrays are prepared first.

        Raises:
            BackendError: as `prepare`; or another session made them ready.
        """
        ...


class Engine(Protocol):
    """Loads graphs; opened by name with `open_engine`."""

    @property
    def name(self) -> str: ...

    def load(self, model_file: Path, threads: int, lean: bool = False) -> SwitchSession:
        """Load a graph.

        Args:
            lean: for memory rather than time, as far as the engine has that choice.

        Raises:
            BackendError: the engine cannot load the file.
        """
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedInputs:
    """Inputs that one session has checked and wrapped: binding them again costs next to nothing.

    Args:
        owner: refers to the session that made it, and no other may bind it; weakly, so that a dropped session is gone at once.
        arrays: keeps the memory alive.
        values: input name -> the engine's own tensor over that memory.
        source: the inputs that all but `changed` are those of; None where they are their own.
        changed: names of inputs that are not the source's.
    """

    owner: weakref.ref[object]
    arrays: Arrays
    values: Mapping[str, Any]
    source: PreparedInputs | None = None
    changed: frozenset[str] = frozenset()

    def updated(self, others: PreparedInputs) -> PreparedInputs:
        """These and others of the same session; where both have an input, the others'."""
        return replace(
            self,
            arrays={**self.arrays, **others.arrays},
            values={**self.values, **others.values},
            source=self.source or self,
            changed=self.changed | others.values.keys(),
        )


@dataclass(eq=False)
class Rack:
    """One set of a graph's inputs as an engine holds them, to run on: choosing another set is a switch.

    Args:
        handle: the engine's own; None before it is needed.
        source: whose inputs lie in it; None before the first.
        changed: names of inputs in it that are not the source's.
    """

    handle: Any = None
    source: weakref.ref[PreparedInputs] | None = None
    changed: frozenset[str] = frozenset()


class BoundSession(abc.ABC):
    """A `SwitchSession` but for five things that each engine does its own way.

    Inputs are checked once, then bound by address. An address carries no type: a wrong array must be stopped before it becomes one, and
    the array must live as long as it is bound.

    Each adapter's inputs lie in a rack of their own, so that binding them again is a choice of rack. Putting the 257 inputs of Stable
    Diffusion 1.5's attention one by one between two steps, which leave none of them in the processor's cache, took 0.41 ms with ONNX
    Runtime and 1.5 ms with OpenVINO. A rack of theirs takes 0.15 MB at most, and goes with the inputs.

    Args:
        separate_racks: the engine can hold several sets of inputs of one graph.
    """

    separate_racks = True

    def __init__(self, graph: str, shapes: Mapping[str, Shape], dtypes: Mapping[str, DTypeLike]) -> None:
        """Args:
        graph: its name in messages.
        shapes: of all inputs, in graph order; None for a dynamic axis.
        dtypes: of the inputs that NumPy has a type for; no array fits the others.
        """
        self._where = f"graph {graph}"
        self._shapes = dict(shapes)
        self._dtypes = {name: np.dtype(dtype) for name, dtype in dtypes.items()}
        self._unbind()

    def _unbind(self) -> None:
        """Nothing is bound, and no inputs are laid out."""
        # What is bound. Engines hold addresses only: the memory is kept alive here.
        self._bound = PreparedInputs(owner=weakref.ref(self), arrays={}, values={})
        self._racks: weakref.WeakKeyDictionary[PreparedInputs, Rack] = weakref.WeakKeyDictionary()
        self._rack = Rack()

    @property
    def inputs(self) -> Mapping[str, Shape]:
        return MappingProxyType(self._shapes)

    @property
    @abc.abstractmethod
    def threads(self) -> int:
        """CPU threads that the engine says it uses for this graph."""

    @abc.abstractmethod
    def _wrap(self, array: NDArray[Any]) -> Any:
        """The engine's tensor over an array's memory."""

    @abc.abstractmethod
    def _new_handle(self) -> Any:
        """An empty set of inputs, which `_put` fills and `_execute` runs on."""

    @abc.abstractmethod
    def _put(self, handle: Any, name: str, value: Any) -> None:
        """Make a wrapped array the graph's input in a set of inputs from now on."""

    @abc.abstractmethod
    def _execute(self, handle: Any) -> list[NDArray[Any]]:
        """Run on what was put into a set of inputs; the graph's outputs, new arrays each time.

        Raises:
            BackendError: the engine failed.
        """

    def prepare(self, inputs: Arrays) -> PreparedInputs:
        """See `SwitchSession.prepare`. Arrays are laid out without gaps; one that already is stays the same array."""
        arrays = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        for name, array in arrays.items():
            self._check(name, array)
        values = {name: self._wrap(array) for name, array in arrays.items()}
        return PreparedInputs(owner=weakref.ref(self), arrays=arrays, values=values)

    def bind(self, inputs: Arrays | PreparedInputs) -> None:
        """See `SwitchSession.bind`; all inputs are checked before the first is bound."""
        prepared = inputs if isinstance(inputs, PreparedInputs) else self.prepare(inputs)
        if prepared.owner() is not self:
            raise BackendError(mismatch("bind", "inputs made ready by this session", "another session's", "call prepare on this one"))
        if not prepared.values.keys() >= self._bound.values.keys():  # a part of what is bound, which changes in its place
            self._put_all(self._rack, prepared, prepared.values)
            self._rack.changed |= prepared.values.keys()
            self._bound = self._bound.updated(prepared)
            return
        rack = self._rack_of(prepared)
        self._put_all(rack, prepared, rack.changed | prepared.changed)
        rack.changed, self._rack, self._bound = prepared.changed, rack, prepared

    def lay_out(self, prepared: PreparedInputs) -> None:
        """See `SwitchSession.lay_out`."""
        if self.separate_racks:
            self._rack_of(prepared)

    def _rack_of(self, prepared: PreparedInputs) -> Rack:
        """A rack that holds the source of these inputs."""
        source = prepared.source or prepared
        rack = self._racks.get(source, Rack()) if self.separate_racks else self._rack
        if rack.source is None or rack.source() is not source:
            self._put_all(rack, source, source.values)
            rack.source, rack.changed = weakref.ref(source), frozenset()
            self._racks[source] = rack
        return rack

    def _put_all(self, rack: Rack, prepared: PreparedInputs, names: Iterable[str]) -> None:
        if rack.handle is None:
            rack.handle = self._new_handle()
        for name in names:
            self._put(rack.handle, name, prepared.values[name])

    def run(self, inputs: Arrays) -> NDArray[Any]:
        """See `Session.run`. Inputs of this call alone take the place of bound ones, which come back after it."""
        return self.run_all(inputs)[0]

    def run_all(self, inputs: Arrays) -> list[NDArray[Any]]:
        """See `SwitchSession.run_all`."""
        missing = [name for name in self._shapes if name not in inputs and name not in self._bound.values]
        if missing:
            raise BackendError(mismatch(self._where, f"{len(self._shapes)} inputs", f"none for {missing[0]}", "bind it before run"))
        prepared = self.prepare(inputs)
        try:
            self._put_all(self._rack, prepared, prepared.values)
            return self._execute(self._rack.handle)
        finally:
            self._put_all(self._rack, self._bound, prepared.values.keys() & self._bound.values.keys())

    def _check(self, name: str, array: NDArray[Any]) -> None:
        """Raises:
        BackendError: the graph has no such input, or not of that type and shape.
        """
        shape, dtype = self._shapes.get(name), self._dtypes.get(name)
        if shape == array.shape and dtype == array.dtype:
            return
        where, next_step = f"{self._where}, input {name}", "this is a bug or another graph's adapter"
        if shape is None:
            raise BackendError(mismatch(where, "an input of the graph", "none of that name", next_step))
        fits = len(shape) == array.ndim and all(n is None or n == m for n, m in zip(shape, array.shape, strict=True))
        if not fits or dtype != array.dtype:
            raise BackendError(mismatch(where, f"{dtype} {shape}", f"{array.dtype} {array.shape}", next_step))


def first_line(error: BaseException) -> str:
    """The first line of a library's error; its class where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def default_threads() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def open_engine(name: str, offered: Sequence[str], precision: str) -> Engine:
    """The engine to use.

    Args:
        name: of an engine, or `auto` for the first of `offered` that is installed.
        offered: engines that the bundle says can run it, best first; empty with a name: no bundle to ask.
        precision: the bundle's precision; engines choose their graph rewrites by it.

    Raises:
        UsageError: no engine has that name.
        CompatibilityError: the bundle was not built for that engine.
        BackendError: the engine, or with `auto` every engine, is not installed.
    """
    if name != "auto":
        if name in ENGINES and offered and name not in offered:
            next_step = f"leave the engine out or build again with a --target that runs on {name}"
            raise CompatibilityError(mismatch("engine", f"{' or '.join(offered)}, which this bundle was built for", name, next_step))
        return _open(name, precision)
    reasons = []
    for candidate in offered:
        try:
            return _open(candidate, precision)
        except (BackendError, UsageError) as error:
            reasons.append(str(error))
            _LOG.info("engine %s: passed over, %s", candidate, error)
    raise BackendError("; ".join(reasons) or "bundle: expected an engine that can run it, found none listed; build it again")


def _open(name: str, precision: str) -> Engine:
    if name not in ENGINES:
        raise UsageError(f"engine: expected auto or one of {', '.join(sorted(ENGINES))}, found {name!r}; choose one of these")
    try:
        engine: Engine = importlib.import_module(ENGINES[name]).open_engine(precision)
    except ImportError as error:
        state = "none" if isinstance(error, ModuleNotFoundError) else f"a broken one ({first_line(error)})"
        package = error.name or "its package"
        raise BackendError(mismatch(f"engine {name}", f"the package {package}", state, f"install it: {INSTALL[name]}")) from error
    _LOG.info("engine %s: opened for precision %s", name, precision)
    return engine
