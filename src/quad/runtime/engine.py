"""The seam to whatever executes graphs."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from quad.core.errors import BackendError, UsageError

# Engine name -> module with `open_engine(precision) -> Engine`, imported when chosen.
ENGINES = {"ort": "quad.runtime.ort"}


class Session(Protocol):
    """One loaded graph.

    A Protocol because vendors' engines share no class: only these three members are relied on.
    """

    @property
    def inputs(self) -> Mapping[str, tuple[int | None, ...]]:
        """Graph input name -> shape, None for a dynamic axis, in graph order."""
        ...

    def bind(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        """Give inputs that stay until bound again: adapter buffers, once per switch. The arrays must not be written to meanwhile.

        Raises:
            BackendError: the graph has no such input, or not of that type and shape.
        """
        ...

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """The graph's first output for these and all bound inputs; a new array each time.

        Raises:
            BackendError: an input is missing or does not fit, or the engine failed.
        """
        ...


class Engine(Protocol):
    """Loads graphs; opened by name with `open_engine`."""

    @property
    def name(self) -> str: ...

    def load(self, model_file: Path, threads: int) -> Session:
        """Load a graph.

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
        offered: engines that the bundle says can run it, best first.
        precision: the bundle's precision; engines choose their graph rewrites by it.

    Raises:
        UsageError: no engine has that name.
        BackendError: the engine, or with `auto` every engine, is not installed.
    """
    if wanted != "auto":
        return _open(wanted, precision)
    reasons = []
    for name in offered:
        try:
            return _open(name, precision)
        except (BackendError, UsageError) as error:
            reasons.append(str(error))
    raise BackendError("; ".join(reasons) or "bundle: expected an engine that can run it, found none listed; build it again")


def _open(name: str, precision: str) -> Engine:
    if name not in ENGINES:
        raise UsageError(f"engine: expected auto or one of {', '.join(sorted(ENGINES))}, found {name!r}; choose one of these")
    try:
        module = importlib.import_module(ENGINES[name])
    except ImportError as error:
        missing = error.name or "its package"
        raise BackendError(f"engine {name}: expected the package {missing}, found none; install it: pip install {missing}") from error
    engine: Engine = module.open_engine(precision)
    return engine
