"""The edges of a float graph and the ranges their values take, for targets that want an encoding on every one of them.

A Site names the operand of a layer or of an attention; what lies between (residual sums, norms, activations) has no name in the profile.
Its range is read from the exported graph itself: every edge gets a ReduceMin and a ReduceMax, so that no activation is kept, whatever
the size of the network. Weights that the profile has encodings of are integers there, as in the graph that will run: a byte each, in a
file that is mapped, and float32 for one layer at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from quad.compile.agreement import in_written_order
from quad.compile.artifact import save_graph
from quad.compile.late_weights import delay_weights
from quad.compile.passes import RemoveSites
from quad.compile.passes.integers.remove_sites import is_site
from quad.compile.placement.constants import encoding_constants, integer_constant, stored_encoding
from quad.core.component_call import ComponentCall
from quad.core.encoding import Encoding
from quad.core.errors import BackendError, InputError, mismatch
from quad.core.storage.files import scratch_directory
from quad.runtime.engines.engine import first_line

Range = tuple[float, float]
_LAYERS, _WEIGHT = ("Conv", "Gemm", "MatMul"), 1


def is_float(value: ir.Value | None) -> bool:
    """A value that would need an encoding: float, and not known before the graph runs."""
    return value is not None and value.const_value is None and value.dtype in (None, ir.DataType.FLOAT)


def float_edges(graph: ir.Graph) -> list[ir.Value]:
    """Every computed or given float value that is no Site's output, inputs first, then in the order of the nodes."""
    computed = [value for node in graph if not is_site(node) for value in node.outputs]
    return [value for value in (*graph.inputs, *computed) if is_float(value)]


def observe_edges(model: ir.Model, calls: Sequence[ComponentCall], profile: Mapping[str, Encoding]) -> dict[str, Range]:
    """Smallest and largest value of every edge over all calls.

    Args:
        model: float, with or without Sites; it stays as it is.
        calls: of this component.
        profile: of this component; weights with an encoding are rounded.

    Raises:
        InputError: there is no call, or an edge takes NaN or Inf.
    """
    if not calls:
        raise InputError(mismatch(f"ranges of {model.graph.name}", "at least one call", "none", "give calibration samples"))
    observed, names = _with_extremes(model, profile)
    with scratch_directory() as folder:
        session = _open(observed, folder)
        low, high = np.full(len(names), np.inf), np.full(len(names), -np.inf)
        input_names = {node.name for node in session.get_inputs()}
        for call in calls:
            outputs = session.run(None, {name: array for name, array in call.feed.items() if name in input_names})
            extremes = np.array([float(value) for value in outputs[-2 * len(names) :]]).reshape(len(names), 2)
            low, high = np.minimum(low, extremes[:, 0]), np.maximum(high, extremes[:, 1])
    for name, bounds in zip(names, zip(low, high, strict=True), strict=True):
        if not np.isfinite(bounds).all():
            where, next_step = f"{model.graph.name}, edge {name}", "check the weights of model and adapter"
            raise InputError(mismatch(where, "finite values", bounds, next_step))
    return {name: (float(a), float(b)) for name, a, b in zip(names, low, high, strict=True)}


def _with_extremes(model: ir.Model, profile: Mapping[str, Encoding]) -> tuple[ir.Model, list[str]]:
    """A copy without Sites whose last outputs are the extremes of each edge, and the edges' names in that order."""
    copy = RemoveSites()(model.clone()).model
    edges = float_edges(copy.graph)
    _round_weights(copy.graph, profile)
    delay_weights(copy.graph)
    for value in edges:
        extremes = [ir.node(kind, [value], attributes={"keepdims": 0}) for kind in ("ReduceMin", "ReduceMax")]
        for node in extremes:
            node.outputs[0].name, node.outputs[0].dtype, node.outputs[0].shape = (
                f"{value.name}/{node.op_type}",
                ir.DataType.FLOAT,
                ir.Shape([]),
            )
            copy.graph.outputs.append(node.outputs[0])
        if (maker := value.producer()) is not None:
            copy.graph.insert_after(maker, extremes)
        else:
            copy.graph.insert_before(copy.graph[0], extremes)
    return copy, [str(value.name) for value in edges]


def _round_weights(graph: ir.Graph, profile: Mapping[str, Encoding]) -> None:
    """Layers read their weights from integers."""
    rounded: dict[str, ir.Value] = {}
    for node in list(graph):
        weight = node.inputs[_WEIGHT] if node.op_type in _LAYERS else None
        name = "" if weight is None else str(weight.name)
        if weight is None or weight.const_value is None or name not in profile:
            continue
        if name not in rounded:
            encoding, stem = stored_encoding(weight, profile[name]), f"{name}/rounded"
            integers = integer_constant(graph, stem, weight, encoding)
            axis = {} if encoding.axis is None else {"axis": encoding.axis}
            dequantize = ir.node("DequantizeLinear", [integers, *encoding_constants(graph, stem, encoding)], attributes=axis)
            rounded[name] = dequantize.outputs[0]
            rounded[name].name, rounded[name].shape, rounded[name].dtype = f"{stem}/dq", weight.shape, ir.DataType.FLOAT
            graph.insert_before(node, dequantize)
        node.replace_input_with(_WEIGHT, rounded[name])
    for name in rounded:
        if not graph.initializers[name].uses():
            del graph.initializers[name]


def _open(model: ir.Model, folder: Path) -> ort.InferenceSession:
    """As written: nothing is fused away that has a name."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    in_written_order(options)
    options.log_severity_level = 3
    path = folder / "observed.onnx"
    save_graph(model, path)
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the library's errors have no common root but this
        where, next_step = f"ranges of {model.graph.name}", "report it with the model's name"
        raise BackendError(mismatch(where, "a float graph that runs", first_line(error), next_step)) from error
