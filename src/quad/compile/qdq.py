"""Placement: the profile's encodings become QuantizeLinear/DequantizeLinear nodes of the graph.

1. Site with an encoding      x -> Q -> DQ          2. Site without one        x
3. weight with an encoding    int W -> DQ (per channel)    4. slot input       int input -> DQ
Biases stay float. One pass over the graph, no execution: seconds for the largest U-Net.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from quad.compile.passes import RemoveSites, finish, weight_permutation
from quad.compile.passes.remove_sites import is_site
from quad.compile.targets import Target
from quad.core.encoding import Encoding
from quad.core.errors import CompatibilityError, UnsupportedError, mismatch
from quad.core.slots import SlotTable


@dataclass(frozen=True)
class Placed:
    """A placed graph.

    Args:
        model: standard operators only.
        placement: `nodes`, `on_target`, `on_cpu`, `partitions` of interfaces.md.
    """

    model: ir.Model
    placement: dict[str, int]


def place_float(model: ir.Model) -> Placed:
    """The float graph: every Site removed, slot inputs stay float32."""
    return _placed(RemoveSites()(model).model)


def place_qdq(model: ir.Model, encodings: Mapping[str, Encoding], slots: SlotTable, target: Target) -> Placed:
    """Replace Sites, weights and slot inputs by their encodings; the model is changed in place.

    Args:
        encodings: the profile's entries of this component, by tensor name.
        slots: the component's slots, empty where it has none.

    Raises:
        CompatibilityError: the profile names a weight or slot that the graph has not, or lacks a slot's encoding.
        UnsupportedError: the target has no scheme for an encoding.
    """
    placer = _Placer(model.graph, encodings, target)
    for name, shape in slots.input_shapes().items():
        placer.place_slot(name, shape)
    for weight in list(model.graph.initializers.values()):
        placer.place_weight(weight)
    for node in [node for node in model.graph if is_site(node)]:
        placer.place_site(node)
    placer.check_all_used()
    return _placed(RemoveSites()(model).model)


def _placed(model: ir.Model) -> Placed:
    finished = finish(model)
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
            what = "a graph input of the slot's shape" if encoding else "an encoding in the profile"
            raise CompatibilityError(mismatch(f"slot {name}", what, "none", "slot and profile the network anew"))
        if encoding.dtype.name not in self._target.slot_dtypes or encoding.symmetric is False:
            expected = f"symmetric {' | '.join(self._target.slot_dtypes)}"
            raise UnsupportedError(mismatch(f"slot {name}", expected, encoding.dtype.name, "choose other --lora-bits"))
        self._used.add(name)
        value.dtype = ir.DataType.from_numpy(encoding.dtype)
        self._dequantize(value, encoding, encoding.axis)

    def place_weight(self, weight: ir.Value) -> None:
        """float constant -> integer constant, DQ along its channel axis."""
        name = weight.name or ""
        encoding = self._encodings.get(name)
        if encoding is None or weight.const_value is None:
            return
        for node, _ in weight.uses():
            scheme = self._target.weights.get(node.op_type)
            if scheme is None or encoding.dtype.name not in scheme.dtypes or (encoding.axis is not None and not scheme.per_channel):
                raise UnsupportedError(mismatch(name, f"a weight scheme of {node.op_type} on target {self._target.name}",
                                                f"{encoding.dtype.name}, axis {encoding.axis}", "choose another --precision"))  # fmt: skip
        self._used.add(name)
        array, axis = _integers(weight, encoding)
        weight.const_value = ir.tensor(array, name=name)
        weight.shape, weight.dtype = ir.Shape(array.shape), weight.const_value.dtype
        self._dequantize(weight, encoding, axis)

    def place_site(self, node: ir.Node) -> None:
        """Site -> Q, DQ; a Site without an encoding is left to `RemoveSites`."""
        name = node.attributes["name"].as_string()
        encoding = self._encodings.get(name)
        if encoding is None:
            return
        if encoding.dtype.name not in self._target.activation_dtypes or encoding.axis is not None:
            expected = f"per-tensor {' | '.join(self._target.activation_dtypes)}"
            raise UnsupportedError(mismatch(name, expected, encoding.dtype.name, "choose another --precision"))
        self._used.add(name)
        scale, zero = self._constants(name, encoding)
        output = node.outputs[0]
        quantize = ir.node("QuantizeLinear", [node.inputs[0], scale, zero], name=f"{name}/Q")
        dequantize = ir.node("DequantizeLinear", [quantize.outputs[0], scale, zero], name=f"{name}/DQ")
        for made, suffix, dtype in ((quantize, "q", ir.DataType.from_numpy(encoding.dtype)), (dequantize, "dq", ir.DataType.FLOAT)):
            made.outputs[0].name = f"{name}/{suffix}"
            made.outputs[0].shape, made.outputs[0].dtype = output.shape, dtype
        self._graph.insert_before(node, (quantize, dequantize))
        output.replace_all_uses_with(dequantize.outputs[0], replace_graph_outputs=True)
        self._graph.remove(node, safe=True)

    def check_all_used(self) -> None:
        """A weight encoding that found no weight means a pass lost the weight's name."""
        lost = sorted(name for name in self._encodings if name not in self._used)
        if lost:
            found = f"{len(lost)} others, first {lost[0]}"
            raise CompatibilityError(mismatch("profile", "only tensors of the graph", found, "profile the same network that is exported"))

    def _dequantize(self, source: ir.Value, encoding: Encoding, axis: int | None) -> None:
        """Every reader of `source` so far reads a DQ of it from now on."""
        name = source.name or ""
        readers = list(source.uses())
        scale, zero = self._constants(name, encoding)
        attributes = {} if axis is None else {"axis": axis}
        node = ir.node("DequantizeLinear", [source, scale, zero], attributes=attributes, name=f"{name}/DQ")
        made = node.outputs[0]
        made.name, made.shape, made.dtype = f"{name}/dq", source.shape, ir.DataType.FLOAT
        self._graph.insert_before(self._graph[0], node)
        for user, index in readers:
            user.replace_input_with(index, made)

    def _constants(self, name: str, encoding: Encoding) -> tuple[ir.Value, ir.Value]:
        scale = np.asarray(encoding.scale, dtype=np.float32)
        zero = np.asarray(encoding.zero_point, dtype=encoding.dtype)
        if encoding.axis is None:
            scale, zero = scale.reshape(()), zero.reshape(())
        return self._constant(f"{name}/scale", scale), self._constant(f"{name}/zero_point", zero)

    def _constant(self, name: str, array: np.ndarray) -> ir.Value:
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, const_value=tensor, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype))
        self._graph.register_initializer(value)
        return value


def _integers(weight: ir.Value, encoding: Encoding) -> tuple[np.ndarray, int | None]:
    """The weight's integers as stored, and their channel axis there; encodings speak of the parameter's own axes."""
    if weight.const_value is None:
        raise CompatibilityError(mismatch(str(weight.name), "a constant", "a computed value", "export the network anew"))
    array = weight.const_value.numpy()
    permutation = weight_permutation(weight)
    if permutation is None:
        return encoding.quantize(array), encoding.axis
    integers = encoding.quantize(array.transpose(np.argsort(permutation))).transpose(permutation)
    axis = None if encoding.axis is None else permutation.index(encoding.axis % array.ndim)
    return np.ascontiguousarray(integers), axis
