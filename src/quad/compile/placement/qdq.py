"""Placement: the profile's encodings become QuantizeLinear/DequantizeLinear nodes of the graph.

1. Site with an encoding      x -> Q -> DQ          2. Site without one        x
3. weight with an encoding    int W -> DQ (per channel)    4. slot input       int input -> DQ, scales stay float32
   token table                int table -> Gather -> DQ
5. on a target with integer kernels, and 8-bit activations in the profile: a Site's 8-bit readers read Q -> DQ, all others x
Biases stay float. One pass over the graph, no execution: seconds for the largest U-Net.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from quad.compile.passes import Observer, RemoveSites, finish, passes_after, run_passes, unobserved, weight_permutation
from quad.compile.passes.integers.remove_sites import is_site, site_name
from quad.compile.passes.layout.fold_transpose import as_parameter, as_stored
from quad.compile.placement.constants import as_file, encoding_constants
from quad.compile.placement.integer_readers import Use, integer_readers
from quad.compile.targets import Target
from quad.core.encoding import Encoding
from quad.core.errors import CompatibilityError, UnsupportedError, mismatch
from quad.core.slots import SlotTable
from quad.core.tensor_names import dequantize_node, quantize_node

_COLUMNS = -1  # the axis of a table's columns in what is looked up


@dataclass(frozen=True)
class Placed:
    """A placed graph.

    Args:
        model: standard operators only.
        placement: `nodes`, `on_target`, `on_cpu`, `partitions` of docs/formats.md.
    """

    model: ir.Model
    placement: dict[str, int]


def place_float(model: ir.Model, passes: Sequence[str] = (), observer: Observer = unobserved) -> Placed:
    """The float graph: every Site removed, slot inputs stay float32.

    Args:
        passes: names of the target's, those that run after placement.
        observer: told of the graph after each step.
    """
    return _placed(model, passes_after(passes), observer)


def place_qdq(
    model: ir.Model, encodings: Mapping[str, Encoding], slots: SlotTable, target: Target, observer: Observer = unobserved
) -> Placed:
    """Replace Sites, weights and slot inputs by their encodings; the model is changed in place.

    Args:
        encodings: the profile's entries of this component, by tensor name.
        slots: the component's slots, empty where it has none.
        observer: told of the graph after each step.

    Raises:
        CompatibilityError: the profile names a weight or slot that the graph has not, or lacks a slot's encoding.
        UnsupportedError: the target has no scheme for an encoding.
    """
    placer = _Placer(model.graph, encodings, target)
    scales = slots.scale_inputs()
    for name, shape in slots.input_shapes().items():
        if name not in scales:
            placer.place_slot(name, shape)
    for weight in list(model.graph.initializers.values()):
        placer.place_weight(weight)
    sites = [node for node in model.graph if is_site(node)]
    for node, readers in zip(sites, [placer.readers(node) for node in sites], strict=True):
        placer.place_site(node, readers)
    placer.check_all_used()
    observer("place_qdq", model)
    return _placed(model, passes_after(target.passes), observer)


def _placed(model: ir.Model, passes: Sequence[str], observer: Observer) -> Placed:
    plain = RemoveSites()(model).model
    observer("remove_sites", plain)
    finished = finish(run_passes(plain, passes, observer), observer)
    nodes = len(finished.graph)
    return Placed(finished, {"nodes": nodes, "on_target": nodes, "on_cpu": 0, "partitions": 1})


class _Placer:
    """One graph's placement in progress."""

    def __init__(self, graph: ir.Graph, encodings: Mapping[str, Encoding], target: Target) -> None:
        self._graph = graph
        self._encodings = encodings
        self._target = target
        self._used: set[str] = set()

    def place_slot(self, name: str, shape: tuple[int, ...]) -> None:
        """float input -> integer input, DQ."""
        encoding = self._encodings.get(name)
        value = next((value for value in self._graph.inputs if value.name == name), None)
        if encoding is None or value is None or tuple(value.shape or ()) != shape:
            expected_input = "a graph input of the slot's shape" if encoding else "an encoding in the profile"
            raise CompatibilityError(mismatch(f"slot {name}", expected_input, "none", "slot and profile the network anew"))
        if encoding.dtype.name not in self._target.slot_dtypes or encoding.symmetric is False:
            expected = f"symmetric {' | '.join(self._target.slot_dtypes)}"
            raise UnsupportedError(mismatch(f"slot {name}", expected, encoding.dtype.name, "choose other --lora-bits"))
        self._used.add(name)
        value.type = ir.TensorType(ir.DataType.from_numpy(encoding.dtype))  # a new one: clones share the old
        self._dequantize(value, encoding, encoding.axis)

    def place_weight(self, weight: ir.Value) -> None:
        """float constant -> integer constant, DQ along its channel axis; of a table, by columns, behind the lookup."""
        name = weight.name or ""
        encoding = self._encodings.get(name)
        if encoding is None or weight.const_value is None:
            return
        for node, _ in weight.uses():
            self._target.check_weight(node.op_type, name, encoding)
        self._used.add(name)
        array, axis = _integers(weight, encoding)
        weight.const_value = ir.tensor(array, name=name)
        weight.shape, weight.type = ir.Shape(array.shape), ir.TensorType(weight.const_value.dtype)
        lookups = [node for node, index in weight.uses() if node.op_type == "Gather" and index == 0]
        for node in lookups:
            node.outputs[0].type = ir.TensorType(weight.const_value.dtype)
            self._dequantize(node.outputs[0], encoding, None if axis is None else _COLUMNS, node)
        if len(lookups) < len(weight.uses()):
            self._dequantize(weight, encoding, axis)

    def readers(self, node: ir.Node) -> list[Use] | None:
        """The readers that are to get a Site's integers, None for all of them: ask before the first Site is placed."""
        if not self._target.integer:
            return None
        return integer_readers(node, self._encodings, self._target.integer, products=self._target.products)

    def place_site(self, node: ir.Node, readers: list[Use] | None) -> None:
        """Site -> Q, DQ; a Site without an encoding, or that none is to read as integers, is left to `RemoveSites`."""
        name = site_name(node)
        encoding = self._encodings.get(name)
        if encoding is None:
            return
        if readers == []:
            self._used.add(name)
            return
        if encoding.dtype.name not in self._target.activation_dtypes or encoding.axis is not None:
            expected = f"per-tensor {' | '.join(self._target.activation_dtypes)}"
            raise UnsupportedError(mismatch(name, expected, encoding.dtype.name, "choose another --precision"))
        output = node.outputs[0]
        stem = f"{name}/{output.name}" if name in self._used else name  # a pass may have made several Sites of one
        self._used.add(name)
        scale, zero = encoding_constants(self._graph, stem, encoding)
        quantize = ir.node("QuantizeLinear", [node.inputs[0], scale, zero], name=quantize_node(stem))
        dequantize = ir.node("DequantizeLinear", [quantize.outputs[0], scale, zero], name=dequantize_node(stem))
        for qdq_node, suffix, dtype in ((quantize, "q", ir.DataType.from_numpy(encoding.dtype)), (dequantize, "dq", ir.DataType.FLOAT)):
            qdq_node.outputs[0].name = f"{stem}/{suffix}"
            qdq_node.outputs[0].shape, qdq_node.outputs[0].dtype = output.shape, dtype
        self._graph.insert_before(node, (quantize, dequantize))
        if readers is None:
            output.replace_all_uses_with(dequantize.outputs[0], replace_graph_outputs=True)
            self._graph.remove(node, safe=True)
        for user, index in readers or ():
            user.replace_input_with(index, dequantize.outputs[0])

    def check_all_used(self) -> None:
        """A weight encoding that found no weight means a pass lost the weight's name."""
        lost = sorted(name for name in self._encodings if name not in self._used)
        if lost:
            unused = f"{len(lost)} others, first {lost[0]}"
            raise CompatibilityError(mismatch("profile", "only tensors of the graph", unused, "profile the same network that is exported"))

    def _dequantize(self, source: ir.Value, encoding: Encoding, axis: int | None, maker: ir.Node | None = None) -> None:
        """Every reader of `source` so far reads a DQ of it from now on; `maker` gives it, None for an input or constant."""
        name = source.name or ""
        readers = list(source.uses())
        scale, zero = encoding_constants(self._graph, name, encoding)
        attributes = {} if axis is None else {"axis": axis}
        node = ir.node("DequantizeLinear", [source, scale, zero], attributes=attributes, name=dequantize_node(name))
        output = node.outputs[0]
        output.name, output.shape, output.dtype = f"{name}/dq", source.shape, ir.DataType.FLOAT
        if maker is None:
            self._graph.insert_before(self._graph[0], node)
        else:
            self._graph.insert_after(maker, node)
        for user, index in readers:
            user.replace_input_with(index, output)


def _integers(weight: ir.Value, encoding: Encoding) -> tuple[np.ndarray, int | None]:
    """The weight's integers as stored, and their channel axis there; encodings speak of the parameter's own axes."""
    if weight.const_value is None:
        raise CompatibilityError(mismatch(str(weight.name), "a constant", "a computed value", "export the network anew"))
    array = weight.const_value.numpy()
    permutation = weight_permutation(weight)
    if permutation is None:
        return as_file(encoding.quantize(array), encoding), encoding.axis
    parameter = as_parameter(array, permutation)
    axis = None if encoding.axis is None else permutation.index(encoding.axis % parameter.ndim)
    return as_file(as_stored(encoding.quantize(parameter), permutation), encoding), axis
