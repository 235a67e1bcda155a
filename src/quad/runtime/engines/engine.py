"""The seam to whatever executes graphs."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from quad.core.errors import BackendError, CompatibilityError, UsageError, mismatch
from quad.runtime.engines.bound_session import Arrays, Ready, Shape, first_line

# Engine name -> module with `open_engine(precision) -> Engine`, imported when chosen; it raises ImportError where its package is missing.
ENGINES = {"ort": "quad.runtime.engines.ort", "openvino": "quad.runtime.engines.openvino", "qnn": "quad.runtime.engines.qnn"}
# Engine name -> what brings its package.
INSTALL = {"ort": "pip install onnxruntime", "openvino": "pip install 'quad[openvino]'", "qnn": "pip install 'quad[qnn]'"}


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

    def prepare(self, inputs: Arrays) -> Ready:
        """Check inputs and wrap them for this session, so that `bind` of the answer is fast. The arrays must not be written to any more.

        Raises:
            BackendError: the graph has no such input, or not of that type and shape.
        """
        ...

    def bind(self, inputs: Arrays | Ready) -> None:
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


def default_threads() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def open_engine(wanted: str, offered: Sequence[str], precision: str) -> Engine:
    """The engine to use.

    Args:
        wanted: a name, or `auto` for the first of `offered` that is installed.
        offered: engines that the bundle says can run it, best first; empty with a name: no bundle to ask.
        precision: the bundle's precision; engines choose their graph rewrites by it.

    Raises:
        UsageError: no engine has that name.
        CompatibilityError: the bundle was not built for that engine.
        BackendError: the engine, or with `auto` every engine, is not installed.
    """
    if wanted != "auto":
        _check_offered(wanted, offered)
        return _open(wanted, precision)
    reasons = []
    for name in offered:
        try:
            return _open(name, precision)
        except (BackendError, UsageError) as error:
            reasons.append(str(error))
    raise BackendError("; ".join(reasons) or "bundle: expected an engine that can run it, found none listed; build it again")


def _check_offered(wanted: str, offered: Sequence[str]) -> None:
    if wanted in ENGINES and offered and wanted not in offered:
        then = f"leave the engine out or build again with a --target that runs on {wanted}"
        raise CompatibilityError(mismatch("engine", f"{' or '.join(offered)}, which this bundle was built for", wanted, then))


def _open(name: str, precision: str) -> Engine:
    if name not in ENGINES:
        raise UsageError(f"engine: expected auto or one of {', '.join(sorted(ENGINES))}, found {name!r}; choose one of these")
    try:
        engine: Engine = importlib.import_module(ENGINES[name]).open_engine(precision)
    except ImportError as error:
        found = "none" if isinstance(error, ModuleNotFoundError) else f"a broken one ({first_line(error)})"
        package = error.name or "its package"
        raise BackendError(mismatch(f"engine {name}", f"the package {package}", found, f"install it: {INSTALL[name]}")) from error
    return engine
