"""One component for Qualcomm's HTP: every value an integer, then a context binary for one chip.

float graph with Sites --edge_encodings, place_edges--> Q/DQ graph --compile_htp--> binary, its pointer and its ports
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from quad.compile.artifact import MODEL_FILE, save_graph
from quad.compile.passes import Observer, RemoveSites, clean, run_passes
from quad.compile.passes.integers.remove_sites import is_site, site_name
from quad.compile.passes.integers.split_bias import SplitBias
from quad.compile.passes.integers.split_weight import SplitWeight
from quad.compile.placement.edge_encodings import edge_encodings
from quad.compile.placement.edge_ranges import observe_edges
from quad.compile.placement.every_edge import place_edges
from quad.compile.qnn.chips import NEWER, Generation, Soc
from quad.compile.targets import Target
from quad.core.component_call import ComponentCall
from quad.core.digests import canonical_json, digest, file_digest
from quad.core.encoding import Encoding
from quad.core.errors import BackendError, CompatibilityError, UnsupportedError, mismatch
from quad.core.ports import PORTS_FILE, Port, Ports, Sinusoid
from quad.core.storage.files import TEMPORARY, write_bytes, writing_to
from quad.core.tensor_names import Role, role_of
from quad.runtime.engines.engine import first_line

_QDQ = ("QuantizeLinear", "DequantizeLinear")
_IR_VERSION = 10  # the newest that this compiler reads
_TIMESTEP = "timestep"
_UNWRITTEN = "Failed to write context cache"  # what the compiler says of a full disk


@dataclass(frozen=True, kw_only=True)
class HtpGraph:
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


def lower(model: ir.Model, profile: Mapping[str, Encoding], observer: Observer, generation: Generation = NEWER) -> ir.Model:
    """The float graph as profile and chip allow it: layers with 16-bit weights without their biases, or as two of 8 bits.

    Args:
        model: after the target's passes.

    Raises:
        CompatibilityError: the profile names a tensor that the graph has not.
    """
    _require_same_graph(model.graph, profile)
    fine = {name: encoding for name, encoding in profile.items() if encoding.bits == 16 and role_of(name) is Role.WEIGHT}
    model = SplitBias(fine)(model).model
    observer("split_bias", model)
    model = run_passes(model, generation.passes, observer)
    if any(encoding.dtype.name not in generation.weight_dtypes for encoding in fine.values()):
        model = SplitWeight(fine)(model).model
        observer("split_weight", model)
    return model


def _require_same_graph(graph: ir.Graph, profile: Mapping[str, Encoding]) -> None:
    has = {site_name(node) for node in graph if is_site(node)} | set(graph.initializers) | {str(value.name) for value in graph.inputs}
    if lost := sorted(profile.keys() - has):
        extra = f"{len(lost)} others, first {lost[0]}"
        raise CompatibilityError(mismatch("profile", "only tensors of the graph", extra, "profile the same network that is exported"))


def place_htp(
    model: ir.Model, profile: Mapping[str, Encoding], calls: Sequence[ComponentCall], target: Target, observer: Observer
) -> HtpGraph:
    """Quantize every edge of a float graph with Sites; the model is changed in place.

    Args:
        model: of `lower`.
        profile: the component's encodings.
        calls: of this component, to find the ranges of edges that have no Site. Their inputs are as the graph takes them (`host_inputs`).

    Raises:
        InputError: no call, or an edge takes NaN or Inf. UnsupportedError: the target has no scheme for a constant.
    """
    edges = edge_encodings(model.graph, profile, observe_edges(model, calls), signed=target.signed)
    constants = place_edges(model, profile, edges, target)
    observer("place_edges", model)
    # Equal DQs are not merged: this compiler wants one for each reader.
    model = clean(RemoveSites()(model).model, observer)
    model.ir_version = _IR_VERSION
    return HtpGraph(model=model, edges=edges, constants=constants, ports=_ports(model.graph, profile, edges))


def _ports(graph: ir.Graph, profile: Mapping[str, Encoding], edges: Mapping[str, Encoding]) -> Ports:
    """Of every input but the slots, whose encodings are the profile's, and of the outputs."""

    def port(value: ir.Value) -> Port:
        name = str(value.name)
        dtype = value.dtype or ir.DataType.FLOAT
        return Port(dtype.numpy().name, edges.get(name))

    inputs = {str(value.name): port(value) for value in graph.inputs if value.name not in profile}
    return Ports(inputs, {str(value.name): port(value) for value in graph.outputs})


def with_sinusoid(graph: HtpGraph, sinusoid: Sinusoid) -> HtpGraph:
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


def integer_feeds(graph: HtpGraph, calls: Sequence[ComponentCall], profile: Mapping[str, Encoding]) -> dict[str, dict[str, NDArray[Any]]]:
    """The first call of every source as the graph takes it: source -> graph input -> integers. Calls are as of `host_inputs`."""
    feeds: dict[str, dict[str, NDArray[Any]]] = {}
    for call in calls:
        inputs = {name: (graph.edges[name].quantize(array) if name in graph.edges else array) for name, array in call.inputs.items()}
        slots = {name: profile[name].quantize(array) for name, array in call.slots.items()}
        feeds.setdefault(call.source, {**inputs, **slots})
    return feeds


@dataclass(frozen=True)
class Compiled:
    """Facts about one compiled graph.

    Args:
        placement: `nodes`, `on_target`, `on_cpu`, `partitions`.
        identity: digest of the placed graph, its ports and the chip. The binary's own differs each time: its objects are numbered in the
            order in which a process compiled.
    """

    placement: dict[str, int]
    identity: str


def compile_htp(graph: HtpGraph, folder: Path, soc: Soc) -> Compiled:
    """Compile into `folder`: `model.onnx` (a pointer), `model_qnn.bin` and `ports.json`.

    Raises:
        BackendError: the compiler is not installed, or does not take the whole graph.
    """
    placed, pointer = folder / "placed.onnx", folder / MODEL_FILE
    with writing_to(folder, TEMPORARY):
        folder.mkdir(parents=True)
        beside = save_graph(graph.model, placed)
    sources = [file_digest(folder / name) for name in (placed.name, *beside)]
    _compile(placed, pointer, soc)
    for name in (placed.name, *beside):
        (folder / name).unlink()
    write_bytes(folder / PORTS_FILE, canonical_json(graph.ports))
    return Compiled(_placement(pointer, graph.nodes), digest([sources, msgspec.to_builtins(graph.ports), soc.name]))


def require_compiler() -> None:
    """Say that Qualcomm's compiler is missing before minutes are spent on what it would compile.

    Raises:
        BackendError: its package is not installed, or cannot be loaded on this machine.
    """
    try:
        from quad.runtime.engines.qnn import htp_devices  # its package is an extra
    except ImportError as error:
        hint = "install it: pip install 'quad[qnn]'"
        raise BackendError(mismatch("target qnn-htp", f"the package {error.name}", "none", hint)) from error
    htp_devices()


def compiler_options(soc: Soc) -> dict[str, str]:
    """Of the provider, to compile for one chip."""
    return {"soc_model": str(soc.model), "htp_arch": str(soc.arch), "htp_graph_finalization_optimization_mode": "3"}


def _compile(placed: Path, pointer: Path, soc: Soc) -> None:
    from quad.runtime.engines.qnn import htp_session  # as above

    config = {"ep.context_enable": "1", "ep.context_file_path": str(pointer), "ep.context_embed_mode": "0"}
    try:
        htp_session(placed, options=compiler_options(soc), config=config)
    except BackendError as error:
        reason = first_line(error.__cause__ if isinstance(error.__cause__, Exception) else error)
        if _UNWRITTEN in reason:
            refusal = f"{pointer.parent}: cannot write (no room for the binary)"
            raise BackendError(f"{refusal}; nothing was written, free some space or {TEMPORARY}") from error
        where, hint = f"{pointer.parent.name} on {soc.name}", "report it with the model's name, and try another --soc"
        raise BackendError(mismatch(where, "a graph that the compiler takes whole", reason, hint)) from error


def _placement(pointer: Path, nodes: int) -> dict[str, int]:
    """Counted in the pointer that the compiler wrote: one EPContext node a partition, any other node is left to the CPU."""
    kinds = Counter(node.op_type for node in onnx.load(str(pointer), load_external_data=False).graph.node)
    partitions = kinds.pop("EPContext", 0)
    left = sum(kinds.values())
    if partitions != 1 or left:
        split = f"{partitions} with {left} nodes on the CPU"
        raise UnsupportedError(mismatch(f"{pointer.parent.name} on the HTP", "one partition", split, "report it with the model's name"))
    return {"nodes": nodes, "on_target": nodes - left, "on_cpu": left, "partitions": partitions}
