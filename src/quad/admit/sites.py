"""Activations that leave their frozen ranges with a new adapter: read off the bundle's own graph.

Every QuantizeLinear of a Q/DQ graph stands at a Site and carries its name. In a copy of the graph each gets four numbers beside it: the
energy of what its range cuts off, the energy of all, the smallest value and the largest. They are taken in the graph's own order, so no
activation is kept for them, whatever the size of the network; the copy is in memory alone, and shares the weights' file with the graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from quad.admit.observed_graph import NUMBERS, Range, float_activations, observed_graph
from quad.core.component_call import Inputs
from quad.core.errors import BackendError, lack_of, mismatch
from quad.runtime.engines.engine import first_line
from quad.runtime.fixed_threads import ENGINE_THREADS

Buffers = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class SiteUse:
    """How one activation uses its range, over some calls.

    Args:
        lost: share of its energy (sum of squares) that the range cuts off, the largest of any call.
        reach: how far the values go, in ranges: 1 is the end of it.
    """

    name: str
    lost: float
    reach: float


@final
class ObservedGraph:
    """The bundle's U-Net with the numbers of its sites beside its answer."""

    def __init__(self, model_file: Path) -> None:
        """Load it; where it cannot be read so, `unread` says why.

        Args:
            model_file: the bundle's U-Net; read only.

        Raises:
            BackendError: the graph cannot be loaded with the numbers beside it.
        """
        self._session: Any = None
        self.ranges: Mapping[str, Range] = {}
        self.unread = ""
        if find_spec("onnxruntime") is None:
            self.unread = "they are read by ONNX Runtime, which is not installed"
            return
        if model_file.suffix != ".onnx":
            self.unread = f"the U-Net is a {model_file.suffix} file, of which ONNX Runtime reads none"
            return
        data, self.ranges = observed_graph(model_file.read_bytes())
        if self.ranges:
            self._session = _load(data, model_file)
        else:
            self.unread = "the U-Net's graph has none to read"

    def uses(self, calls: Sequence[Inputs], buffers: Buffers, at_once: int = 1) -> dict[str, SiteUse]:
        """Site -> its use over the calls; empty where the graph has no sites that can be read.

        Args:
            buffers: all slot inputs of the graph, of one adapter.
            at_once: how many calls run at once, each on one thread.
        """
        if self._session is None:
            return {}
        count = len(NUMBERS) * len(self.ranges)

        def energies(call: Inputs) -> NDArray[np.float64]:
            outputs = self._session.run(None, {**call, **buffers})
            return np.array([float(value) for value in outputs[-count:]]).reshape(-1, len(NUMBERS))

        with ThreadPoolExecutor(at_once) as pool:
            values = np.stack(list(pool.map(energies, calls)))
        return {name: _use(name, values[:, i], limits) for i, (name, limits) in enumerate(self.ranges.items())}


def unrounded_outputs(model_file: Path, calls: Sequence[tuple[Buffers, Inputs]], at_once: int = 1) -> list[NDArray[Any]] | None:
    """Answers of the bundle's U-Net with activations left as floats, neither rounded nor clipped: what an adapter changes in these is what
    its weights say.

    Args:
        model_file: of a graph whose sites can be read; it is loaded for these calls alone.
        calls: each with all slot inputs of the graph, of one adapter.
        at_once: how many calls run at once, each on one thread.

    Returns:
        None where the graph's activations cannot be left so.

    Raises:
        BackendError: the graph cannot be loaded so.
    """
    if (data := float_activations(model_file.read_bytes())) is None:
        return None
    session = _load(data, model_file)
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(lambda call: np.asarray(session.run(None, {**call[1], **call[0]})[0]), calls))


def _load(data: bytes, model_file: Path) -> Any:
    """As written, so that every site is there, and in that order: the library's own has everything wait for the last output."""
    import onnxruntime as ort

    from quad.runtime.engines.ort import AS_WRITTEN, session_options

    options = session_options(AS_WRITTEN, ENGINE_THREADS)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    # A plan to reuse buffers is made at load, over all of these nodes: 1.3 s for the reference model's graph, 0.4 s without. The arena
    # takes its place, and spares new pages for each weight that becomes floats.
    options.enable_cpu_mem_arena = True
    options.enable_mem_pattern = options.enable_mem_reuse = False
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(model_file.parent.absolute()))
    where = "the bundle's U-Net with its activations read"
    try:
        return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the library's errors have no common root but this
        hint = "report it with the bundle's name"
        raise lack_of(where, error) or BackendError(mismatch(where, "a graph that runs", first_line(error), hint)) from error


def _use(name: str, values: NDArray[np.float64], limits: Range) -> SiteUse:
    """Of the four numbers of every call `(calls, 4)`; what is not finite reaches beyond every range."""
    if not np.isfinite(values).all():
        return SiteUse(name, 1.0, float("inf"))
    (low, high), (lost, energy, smallest, largest) = limits, values.T
    below = max(0.0, -float(smallest.min())) / max(-low, 1e-30)
    above = max(0.0, float(largest.max())) / max(high, 1e-30)
    return SiteUse(name, float((lost / np.maximum(energy, 1e-30)).max()), max(below, above))
