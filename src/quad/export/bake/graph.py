"""Updates merged into one graph: the layers' constants are written anew, the slots' branches and inputs go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as library
from numpy.typing import NDArray

from quad.compile.passes import clean
from quad.compile.passes.edit import Writer, constant, is_op, remove_unread, replace, static_shape
from quad.compile.passes.integers.dequantized import Dequantized, dequantized, write_dequantized
from quad.compile.passes.integers.slice_weights import join_slices
from quad.core.errors import UnsupportedError, mismatch
from quad.core.slots import Slot, SlotTable
from quad.export.bake.branch import branch_of, is_kernel, weight_of
from quad.export.bake.layout import WeightLayout
from quad.export.bake.merge import LatticeWeight, Real, merged

_SCALE, _ZERO = 3, 5  # inputs of the integer kernel
_INPUTS = 1  # axis of a parameter's input channels


@dataclass(frozen=True, kw_only=True)
class MergedWeight:
    """A slot's layer afterwards.

    Args:
        weight: in the parameter's own axes.
        error: largest difference of an entry to the exact sum.
        bound: the most that it may be: half a step of the coarsest channel.
        widened: channels whose step grew.
    """

    weight: LatticeWeight
    error: float
    bound: float
    widened: int


@dataclass(frozen=True, kw_only=True)
class _Product:
    """One product of a layer, and its constant."""

    node: ir.Node
    layout: WeightLayout
    weight: LatticeWeight


def merge_graph(model: ir.Model, slots: SlotTable, updates: Mapping[str, Real], bits: int | None = None) -> dict[str, MergedWeight]:
    """Merge updates into a graph, in place, and take its slots away.

    Args:
        slots: of this graph.
        updates: slot path -> what is added to its layer's weight, in the parameter's own axes.
        bits: of weights whose layer computes in floats; None for those that they have.

    Returns:
        Slot path -> its layer's weight, of the slots with an update.

    Raises:
        UnsupportedError: the graph is of a form that quad did not write.
    """
    inputs = {str(value.name): value for value in model.graph.inputs}
    merged_weights = {}
    join_slices(model.graph)
    for slot in slots.slots:
        if slot.b_name not in inputs:
            raise UnsupportedError(mismatch(f"slot {slot.path}", "an input of the graph", "none", "build the bundle again"))
        branch = branch_of(inputs[slot.b_name])
        if slot.path in updates:
            merged_weights[slot.path] = _merge(slot, branch.products, updates[slot.path], bits)
        _detach(branch.join, branch.layer)
    library.RemoveUnusedNodesPass()(model)
    _drop_inputs(model.graph, slots)
    clean(model)
    return merged_weights


def _merge(slot: Slot, nodes: Sequence[ir.Node], update: Real, bits: int | None) -> MergedWeight:
    products = [_product(slot, node) for node in nodes]
    first = products[0].weight
    whole = np.concatenate([product.weight.array for product in products], axis=_INPUTS)
    one_lattice = all(_same(product.weight.scale, first.scale) for product in products)
    if whole.shape != update.shape or not one_lattice:
        raise UnsupportedError(mismatch(f"slot {slot.path}", f"a weight of {update.shape}", whole.shape, "build the bundle again"))
    before = LatticeWeight(array=whole, scale=first.scale, axis=first.axis)
    after = merged(before, update, bits if all(_in_floats(node) for node in nodes) else None)
    start = 0
    for product in products:
        stop = start + product.weight.array.shape[_INPUTS]
        _write(product, LatticeWeight(array=after.array[:, start:stop], scale=after.scale, axis=after.axis))
        start = stop
    return _report(before, after, update)


def _same(scale: NDArray[np.float32] | None, other: NDArray[np.float32] | None) -> bool:
    return scale is other if scale is None or other is None else np.array_equal(scale, other)


def _report(before: LatticeWeight, after: LatticeWeight, update: Real) -> MergedWeight:
    error = float(np.abs(after.real() - (before.real() + update)).max(initial=0.0))
    if after.scale is None or before.scale is None:
        return MergedWeight(weight=after, error=error, bound=float(np.spacing(np.abs(after.array).max(initial=0.0))), widened=0)
    widened = int((after.scale > before.scale).sum()) if after.array.dtype == before.array.dtype else 0
    return MergedWeight(weight=after, error=error, bound=float(after.scale.max()) / 2, widened=widened)


def _product(slot: Slot, node: ir.Node) -> _Product:
    layout, encoded, value = WeightLayout.of(node, slot), dequantized(node.inputs[1]), weight_of(node)
    array = None if value is None else constant(value)
    parameter = None if array is None else layout.parameter(array)
    scale_value = node.inputs[_SCALE] if is_kernel(node) else None if encoded is None else encoded.scale
    scale = constant(scale_value)
    zero = constant(node.inputs[_ZERO] if is_kernel(node) and len(node.inputs) > _ZERO else None if encoded is None else encoded.zero)
    along = scale is None or scale.size == 1 or is_kernel(node) or (encoded is not None and encoded.axis == layout.channel_axis)
    if array is not None and array.dtype not in (np.int8, np.int16, np.float32):
        way = "bake a bundle of 8-bit weights, or bind the adapter"
        raise UnsupportedError(mismatch(f"slot {slot.path}", "weights of 8 or 16 bits, or floats", str(array.dtype), way))
    if parameter is None or not along or (zero is not None and zero.any()):
        raise UnsupportedError(mismatch(f"slot {slot.path}", "a weight of its layer", f"another at {node.name}", "build the bundle again"))
    axis = None if scale is None or scale.size == 1 else 0
    return _Product(node=node, layout=layout, weight=LatticeWeight(array=parameter, scale=scale, axis=axis))


def _in_floats(node: ir.Node) -> bool:
    """Whether the product reads no 8-bit activation, for which there are kernels of 8-bit weights alone."""
    return not is_kernel(node) and dequantized(node.inputs[0], ir.DataType.UINT8) is None


def _write(product: _Product, weight: LatticeWeight) -> None:
    node, writer = product.node, Writer(product.node, f"{product.node.outputs[0].name}/merged")
    array = writer.constant("weight", product.layout.stored(weight.array))
    if weight.scale is None:
        node.replace_input_with(1, array)
        return
    scale = writer.constant("scale", weight.scale)
    if is_kernel(node):
        node.replace_input_with(1, array)
        node.replace_input_with(_SCALE, scale)
        return
    zero = writer.constant("zero_point", np.zeros(weight.scale.shape, weight.array.dtype))
    axis = None if weight.axis is None else product.layout.channel_axis
    node.replace_input_with(1, write_dequantized(writer, Dequantized(integers=array, scale=scale, zero=zero, axis=axis)))


def _detach(join: ir.Node, layer: ir.Value) -> None:
    """Read the layer where the sum was read; two Reshapes that meet become one, or none."""
    readers = [use.node for use in join.outputs[0].uses()]
    replace(join.outputs[0], layer)
    above = layer.producer()
    if above is None or not is_op(above, "Reshape") or above.inputs[0] is None:
        return
    for reader in readers:
        if not is_op(reader, "Reshape") or reader.inputs[0] is not layer:
            continue
        shape = static_shape(reader.outputs[0])
        if shape is not None and shape == static_shape(above.inputs[0]):
            replace(reader.outputs[0], above.inputs[0])
        else:
            reader.replace_input_with(0, above.inputs[0])
    remove_unread(above)


def _drop_inputs(graph: ir.Graph, slots: SlotTable) -> None:
    names = slots.input_shapes().keys()
    for value in [value for value in graph.inputs if value.name in names]:
        if value.uses():
            raise UnsupportedError(mismatch(f"slot input {value.name}", "no reader but its branch", "another", "build the bundle again"))
        graph.inputs.remove(value)
