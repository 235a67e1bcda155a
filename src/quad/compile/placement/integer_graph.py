"""A component with integers on every edge, for targets that compute in nothing else.

float graph with Sites --lower_layers--> layers that the target has --edge_encodings, place_edges--> Q/DQ graph, encodings, ports
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import onnx_ir as ir
from numpy.typing import NDArray

from quad.compile.passes import Observer, RemoveSites, clean, run_passes
from quad.compile.passes.integers.remove_sites import is_site, site_name
from quad.compile.passes.integers.split_bias import SplitBias
from quad.compile.passes.integers.split_weight import SplitWeight
from quad.compile.placement.edge_encodings import edge_encodings
from quad.compile.placement.edge_ranges import observe_edges
from quad.compile.placement.every_edge import place_edges
from quad.compile.targets import Target
from quad.core.component_call import ComponentCall
from quad.core.encoding import Encoding
from quad.core.errors import CompatibilityError, mismatch
from quad.core.ports import Port, Ports, Sinusoid
from quad.core.tensor_names import Role, role_of

_QDQ = ("QuantizeLinear", "DequantizeLinear")
_IR_VERSION = 10  # the newest that Qualcomm's compiler reads
_TIMESTEP = "timestep"


@dataclass(frozen=True, kw_only=True)
class IntegerGraph:
    """A placed graph and what belongs to it.

    Args:
        model: standard operators and Q/DQ; inputs and outputs are integers.
        edges: encoding of every activation by its name in the float graph.
        constants: encoding of every constant, likewise.
        ports: of all inputs but slots.
    """

    model: ir.Model
    edges: Mapping[str, Encoding]
    constants: Mapping[str, Encoding]
    ports: Ports

    @property
    def nodes(self) -> int:
        """Operators that compute; Q and DQ only say how values are stored."""
        return sum(1 for node in self.model.graph if node.op_type not in _QDQ)


def lower_layers(
    model: ir.Model, profile: Mapping[str, Encoding], target: Target, observer: Observer, passes: Sequence[str] = ()
) -> ir.Model:
    """The float graph as profile and chip allow it: layers with 16-bit weights without their biases, or as two of 8 bits.

    Args:
        model: after the target's passes.
        target: of the chip; its layers take constant weights of 16 bits, or of 8 alone.
        passes: names of those that a chip needs behind the target's own.

    Raises:
        CompatibilityError: the profile names a tensor that the graph has not.
    """
    _require_same_graph(model.graph, profile)
    fine = {name: encoding for name, encoding in profile.items() if encoding.bits == 16 and role_of(name) is Role.WEIGHT}
    model = SplitBias(fine)(model).model
    observer("split_bias", model)
    model = run_passes(model, passes, observer)
    if not target.takes_fine_weights:
        model = SplitWeight(fine)(model).model
        observer("split_weight", model)
    return model


def _require_same_graph(graph: ir.Graph, profile: Mapping[str, Encoding]) -> None:
    has = {site_name(node) for node in graph if is_site(node)} | set(graph.initializers) | {str(value.name) for value in graph.inputs}
    if lost := sorted(profile.keys() - has):
        extra = f"{len(lost)} others, first {lost[0]}"
        raise CompatibilityError(mismatch("profile", "only tensors of the graph", extra, "profile the same network that is exported"))


def place_integers(
    model: ir.Model, profile: Mapping[str, Encoding], calls: Sequence[ComponentCall], target: Target, observer: Observer
) -> IntegerGraph:
    """Quantize every edge of a float graph with Sites; the model is changed in place.

    Args:
        model: of `lower_layers`.
        profile: the component's encodings.
        calls: of this component, to find the ranges of edges that have no Site. Their inputs are as the graph takes them (`host_inputs`).

    Raises:
        InputError: no call, or an edge takes NaN or Inf. UnsupportedError: the target has no scheme for a constant.
    """
    edges = edge_encodings(model.graph, profile, observe_edges(model, calls, profile), signed=target.signed)
    constants = place_edges(model, profile, edges, target)
    observer("place_edges", model)
    # Equal DQs are not merged: a compiler may want one for each reader, as Qualcomm's does.
    model = clean(RemoveSites()(model).model, observer)
    model.ir_version = _IR_VERSION
    return IntegerGraph(model=model, edges=edges, constants=constants, ports=_ports(model.graph, profile, edges))


def _ports(graph: ir.Graph, profile: Mapping[str, Encoding], edges: Mapping[str, Encoding]) -> Ports:
    """Of every input but the slots, whose encodings are the profile's, and of the outputs."""

    def port(value: ir.Value) -> Port:
        name = str(value.name)
        dtype = value.dtype or ir.DataType.FLOAT
        return Port(dtype.numpy().name, edges.get(name))

    inputs = {str(value.name): port(value) for value in graph.inputs if value.name not in profile}
    return Ports(inputs, {str(value.name): port(value) for value in graph.outputs})


def with_sinusoid(graph: IntegerGraph, sinusoid: Sinusoid) -> IntegerGraph:
    """The graph's timestep port computes this embedding."""
    port = graph.ports.inputs.get(_TIMESTEP)
    if port is None:
        return graph
    inputs = {**graph.ports.inputs, _TIMESTEP: msgspec.structs.replace(port, sinusoid=sinusoid)}
    return replace(graph, ports=Ports(inputs, graph.ports.outputs))


def host_inputs(calls: Sequence[ComponentCall], sinusoid: Sinusoid) -> list[ComponentCall]:
    """Calls as they reach the graph when the timestep's embedding is computed outside, and token ids have 32 bits."""
    host_calls = []
    for call in calls:
        inputs = {name: array.astype("int32") if array.dtype == "int64" else array for name, array in call.inputs.items()}
        if _TIMESTEP in inputs:
            inputs[_TIMESTEP] = sinusoid(inputs[_TIMESTEP])
        host_calls.append(replace(call, inputs=inputs))
    return host_calls


def fitting(graph: ir.Graph, calls: Sequence[ComponentCall]) -> list[ComponentCall]:
    """The calls whose inputs have the graph's shapes, which are those of one picture size. Calls are as of `host_inputs`."""
    shapes = {value.name: tuple(value.shape or ()) for value in graph.inputs}
    return [call for call in calls if all(shapes[name] == array.shape for name, array in call.inputs.items())]


def integer_feeds(
    graph: IntegerGraph, calls: Sequence[ComponentCall], profile: Mapping[str, Encoding]
) -> dict[str, dict[str, NDArray[Any]]]:
    """The first call of every source as the graph takes it: source -> graph input -> integers. Calls are as of `host_inputs`."""
    feeds: dict[str, dict[str, NDArray[Any]]] = {}
    for call in calls:
        inputs = {name: (graph.edges[name].quantize(array) if name in graph.edges else array) for name, array in call.inputs.items()}
        slots = {name: profile[name].quantize(array) for name, array in call.slots.items()}
        feeds.setdefault(call.source, {**inputs, **slots})
    return feeds
