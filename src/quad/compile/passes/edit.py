"""Queries and edits that all rewrites share: constants, static shapes, new nodes of float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from quad.compile.lazy_tensor import lazy_tensor


def is_op(node: ir.Node | None, *types: str) -> bool:
    """True for a standard operator of one of these types."""
    return node is not None and node.domain == "" and node.op_type in types


def producer(value: ir.Value | None, *types: str) -> ir.Node | None:
    """The standard operator of one of these types that makes the value, or None."""
    node = None if value is None else value.producer()
    return node if is_op(node, *types) else None


def static_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """Its shape, None where a dimension is not known."""
    if value is None or value.shape is None or any(not isinstance(n, int) for n in value.shape):
        return None
    return tuple(n for n in value.shape if isinstance(n, int))


def constant(value: ir.Value | None) -> NDArray[Any] | None:
    """A constant's numbers; None for a computed value, a graph input or no value."""
    if value is None or value.const_value is None or value.is_graph_input():
        return None
    return value.const_value.numpy()


def scalar(value: ir.Value | None) -> float | None:
    """A constant of one element as a number."""
    array = constant(value)
    return None if array is None or array.size != 1 else float(array.reshape(()))


def sole_reader(value: ir.Value) -> ir.Node | None:
    """The one node that reads the value, once; None where there are more, or where it is an output of the graph."""
    uses = tuple(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def perm_of(node: ir.Node) -> tuple[int, ...]:
    """A Transpose's permutation; without one it turns the axes around."""
    if "perm" in node.attributes:
        return tuple(node.attributes["perm"].as_ints())
    return tuple(reversed(range(len(static_shape(node.inputs[0]) or ()))))


def axis_of(node: ir.Node, rank: int, default: int) -> int:
    """The attribute `axis`, counted from the front."""
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else default
    return axis % rank


def new_constant(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    """A new initializer."""
    return _registered(graph, ir.tensor(array, name=name))


def lazy_constant(graph: ir.Graph, name: str, make: Callable[[], NDArray[Any]], dtype: ir.DataType, shape: tuple[int, ...]) -> ir.Value:
    """A new initializer whose numbers are made when they are read, each time anew."""
    return _registered(graph, lazy_tensor(make, dtype, shape, name))


def _registered(graph: ir.Graph, tensor: ir.TensorProtocol) -> ir.Value:
    value = ir.Value(
        name=tensor.name, const_value=tensor, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(ir.DataType(tensor.dtype))
    )
    graph.register_initializer(value)
    return value


class Writer:
    """Writes nodes before `anchor`; each value gets the name `<stem>/<label>`, so that it tells where it comes from.

    Args:
        anchor: a node that stays until all is written.
        stem: a name that no other writer uses, usually that of the value that is replaced.
    """

    def __init__(self, anchor: ir.Node, stem: str) -> None:
        if anchor.graph is None:
            raise ir.passes.PassError(f"{anchor.name}: a node outside a graph")
        self._anchor, self._graph, self._stem = anchor, anchor.graph, stem
        self._count = 0

    def constant(self, label: str, array: NDArray[Any]) -> ir.Value:
        """A new initializer."""
        return new_constant(self._graph, self._name(label), array)

    def node(self, op: str, inputs: Sequence[ir.Value | None], *shapes: Sequence[int], **attributes: Any) -> ir.Node:
        """A node with one output per shape, of the first input's element type."""
        name = self._name(op)
        new_node = ir.node(op, inputs, attributes=attributes, num_outputs=len(shapes), name=name)
        for index, (output, shape) in enumerate(zip(new_node.outputs, shapes, strict=True)):
            output.name = name if len(shapes) == 1 else f"{name}.{index}"
            output.shape, output.type = ir.Shape(shape), _type_of(inputs[0])
        self._graph.insert_before(self._anchor, new_node)
        return new_node

    def like(self, node: ir.Node, inputs: Sequence[ir.Value | None], *shapes: Sequence[int], **changed: Any) -> ir.Node:
        """A node with another's operator, domain and attributes, but for those changed."""
        attributes = [attribute for name, attribute in node.attributes.items() if name not in changed]
        new_node = self.node(node.op_type, inputs, *shapes, **changed)
        new_node.domain = node.domain
        for attribute in attributes:
            new_node.attributes.add(attribute)
        for old, new in zip(node.outputs, new_node.outputs, strict=True):
            new.type = _type_of(old)
        return new_node

    def value(self, op: str, inputs: Sequence[ir.Value | None], shape: Sequence[int], **attributes: Any) -> ir.Value:
        """The output of a new node."""
        return self.node(op, inputs, shape, **attributes).outputs[0]

    def transpose(self, x: ir.Value, perm: Sequence[int]) -> ir.Value:
        shape = static_shape(x) or ()
        return self.value("Transpose", [x], [shape[k] for k in perm], perm=list(perm))

    def reshape(self, x: ir.Value, shape: Sequence[int]) -> ir.Value:
        """The value itself where it has this shape already."""
        if static_shape(x) == tuple(shape):
            return x
        return self.value("Reshape", [x, self.constant("shape", np.asarray(shape, np.int64))], shape)

    def _name(self, label: str) -> str:
        self._count += 1
        return f"{self._stem}/{label}_{self._count}"


def _type_of(value: ir.Value | None) -> ir.TensorType:
    """A type of its own for a new value: types can be changed in place, and clones of a graph share them."""
    dtype = None if value is None else value.dtype
    return ir.TensorType(ir.DataType.FLOAT if dtype is None else dtype)


def replace(old: ir.Value, new: ir.Value) -> None:
    """Every reader of `old` reads `new`; an output of the graph keeps its name. The node of `old` goes if nothing else is read of it."""
    if old.is_graph_output():
        old.name, new.name = f"{old.name}/old", old.name
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    remove_unread(old.producer())


def remove_unread(node: ir.Node | None) -> None:
    """Delete a node that nobody reads, and then those that only it had read."""
    if node is None or node.graph is None or any(output.uses() or output.is_graph_output() for output in node.outputs):
        return
    makers = [value.producer() for value in node.inputs if value is not None]
    node.graph.remove(node, safe=True)
    for maker in makers:
        remove_unread(maker)
