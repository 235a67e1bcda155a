"""Activations that leave their frozen ranges with a new adapter: read off the bundle's own graph.

Every QuantizeLinear of a Q/DQ graph stands at a Site and carries its name. In a copy of the graph each gets four numbers beside it: the
energy of what its range cuts off, the energy of all, the smallest value and the largest. They are taken in the graph's own order, so no
activation is kept for them, whatever the size of the network, and neither the base model nor torch is needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from quad.build.fixed_threads import ENGINE_THREADS
from quad.compile.artifact import save_graph
from quad.core.component_call import Inputs
from quad.core.errors import BackendError, mismatch
from quad.core.storage.files import scratch_directory
from quad.core.tensor_names import quantized_tensor
from quad.runtime.engines.engine import first_line
from quad.runtime.engines.ort import AS_WRITTEN, session_options

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


def has_sites(model_file: Path) -> bool:
    """Is this a Q/DQ graph that can be looked into; a vendor's binary is not."""
    return bool(_sites(ir.load(model_file).graph))


def site_uses(model_file: Path, calls: Sequence[Inputs], buffers: Iterable[tuple[str, Buffers]]) -> dict[str, dict[str, SiteUse]]:
    """Label -> site -> its use over the calls, with each of some adapters.

    Args:
        model_file: the bundle's U-Net; read only.
        buffers: labels, each with slot inputs of the graph, all of them; taken one after the other.

    Raises:
        BackendError: the graph cannot be run with the numbers beside it.
    """
    model = ir.load(model_file)
    bounds = _observed(model)
    names = list(bounds)
    with scratch_directory() as folder:
        session = _open(model, folder / "observed.onnx")
        energies = {label: np.stack([_run(session, call, slots, len(names)) for call in calls]) for label, slots in buffers}
    return {label: {name: _use(name, values[:, i], bounds[name]) for i, name in enumerate(names)} for label, values in energies.items()}


def _sites(graph: ir.Graph) -> list[ir.Node]:
    """The Q nodes of Sites whose range is one for the whole tensor."""
    return [
        node
        for node in graph
        if node.op_type == "QuantizeLinear" and quantized_tensor(node.name or "") is not None and _is_scalar(node.inputs[1])
    ]


def _is_scalar(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is not None and value.const_value.size == 1


def _range(node: ir.Node) -> tuple[float, float]:
    """Smallest and largest value that a Q node can tell apart."""
    scale, zero = node.inputs[1], node.inputs[2]
    if scale is None or scale.const_value is None or zero is None or zero.const_value is None:
        raise BackendError(mismatch(f"node {node.name}", "scale and zero point as constants", "none", "build the bundle again"))
    point, step = zero.const_value.numpy(), float(scale.const_value.numpy())
    info = np.iinfo(point.dtype)
    # Half a step beyond its end is still rounded to the end.
    return (int(info.min) - int(point) - 0.5) * step, (int(info.max) - int(point) + 0.5) * step


def _observed(model: ir.Model) -> dict[str, tuple[float, float]]:
    """Put the four numbers of each site behind the graph's outputs; site -> its range, in their order.

    Their nodes stand before the site's own, where `_open` has them run.
    """
    graph, bounds = model.graph, {}

    def add(site: ir.Node, kind: str, *inputs: ir.Value | None, **attributes: int) -> ir.Value:
        node = ir.node(kind, inputs, attributes=attributes)
        graph.insert_before(site, node)
        return node.outputs[0]

    for node in _sites(graph):
        name, x = str(quantized_tensor(str(node.name))), node.inputs[0]
        low, high = bounds[name] = _range(node)
        ends = [_constant(graph, f"{name}/{end}", value) for end, value in (("low", low), ("high", high))]
        cut = add(node, "Sub", x, add(node, "Clip", x, *ends))
        for number, kind, of in (
            ("lost", "ReduceSumSquare", cut),
            ("all", "ReduceSumSquare", x),
            ("min", "ReduceMin", x),
            ("max", "ReduceMax", x),
        ):
            value = add(node, kind, of, keepdims=0)
            value.name, value.dtype, value.shape = f"{name}/{number}", ir.DataType.FLOAT, ir.Shape([])
            graph.outputs.append(value)
    return bounds


def _constant(graph: ir.Graph, name: str, number: float) -> ir.Value:
    value = ir.Value(name=name, const_value=ir.tensor(np.array(number, np.float32), name=name))
    value.dtype, value.shape = ir.DataType.FLOAT, ir.Shape([])
    graph.register_initializer(value)
    return value


def _open(model: ir.Model, path: Path) -> ort.InferenceSession:
    """As written, so that every site is there, and in that order: the library's own has everything wait for the last output."""
    options = session_options(AS_WRITTEN, ENGINE_THREADS)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    save_graph(model, path)
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the library's errors have no common root but this
        where, hint = "the bundle's U-Net with its ranges read", "report it with the bundle's name"
        raise BackendError(mismatch(where, "a graph that runs", first_line(error), hint)) from error


def _run(session: ort.InferenceSession, call: Inputs, buffers: Buffers, sites: int) -> NDArray[np.float64]:
    """Energy lost and in all, smallest and largest of every site `(sites, 4)`."""
    outputs = session.run(None, {**call, **buffers})
    return np.array([float(value) for value in outputs[-4 * sites :]]).reshape(sites, 4)


def _use(name: str, values: NDArray[np.float64], bounds: tuple[float, float]) -> SiteUse:
    """Of the four numbers of every call `(calls, 4)`; what is not finite reaches beyond every range."""
    if not np.isfinite(values).all():
        return SiteUse(name, 1.0, float("inf"))
    (low, high), (lost, energy, smallest, largest) = bounds, values.T
    below = max(0.0, -float(smallest.min())) / max(-low, 1e-30)
    above = max(0.0, float(largest.max())) / max(high, 1e-30)
    return SiteUse(name, float((lost / np.maximum(energy, 1e-30)).max()), max(below, above))
