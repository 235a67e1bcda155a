"""Where a slot's branch meets its layer in a compiled graph, and which constants the layer multiplies with.

    layer + B (A x)     from B downwards every node multiplies, or moves numbers, up to the one that adds: an Add, or a Gemm's own sum.
                        What it adds to is the layer: read upwards through moves and its bias to its product, or several where the
                        layer's input was divided along its channels.

Names and shapes of what is within are not asked for: graphs of further sizes have none.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from quad.compile.passes.edit import constant, is_op
from quad.compile.passes.integers.dequantized import dequantized
from quad.compile.passes.integers.integer_matmul import KERNEL
from quad.compile.passes.integers.remove_sites import CONTRIBUTED
from quad.core.errors import UnsupportedError, mismatch

_MOVES = ("Reshape", "Transpose", "Squeeze", "Unsqueeze")
_CARRIERS = (*_MOVES, "DequantizeLinear", "Mul", "MatMul", "Gemm", "Conv", "Cast", "Split")
_PRODUCTS = ("Conv", "MatMul", "Gemm")
_ADDEND = 2  # of a Gemm's inputs


@dataclass(frozen=True, kw_only=True)
class Branch:
    """One slot in a graph.

    Args:
        join: the node that adds.
        layer: what it adds the branch to.
        products: the layer's products, in the order of the input channels that they read.
    """

    join: ir.Node
    layer: ir.Value
    products: tuple[ir.Node, ...]


def branch_of(up: ir.Value) -> Branch:
    """The branch of a slot.

    Args:
        up: the graph's input B.

    Raises:
        UnsupportedError: the graph is of another form.
    """
    join, layer = _join(up)
    return Branch(join=join, layer=layer, products=tuple(_products(layer, str(up.name))))


def is_kernel(node: ir.Node) -> bool:
    """ONNX Runtime's integer matmul, as `integer_matmul` writes it."""
    return node.domain == CONTRIBUTED and node.op_type == KERNEL


def _join(up: ir.Value) -> tuple[ir.Node, ir.Value]:
    value = up
    while True:
        uses = tuple(value.uses())
        if len(uses) != 1 or value.is_graph_output():
            raise _other_form(str(up.name), f"{len(uses)} readers of {value.name}")
        node, place = uses[0].node, uses[0].idx
        if is_op(node, "Gemm") and place < _ADDEND < len(node.inputs) and (addend := node.inputs[_ADDEND]) is not None:
            return node, addend
        if is_op(node, "Add") and (other := node.inputs[1 - place]) is not None:
            return node, other
        if not is_op(node, *_CARRIERS):
            raise _other_form(str(up.name), f"a {node.op_type}")
        value = node.outputs[0]


def _products(value: ir.Value, name: str) -> list[ir.Node]:
    node = value.producer()
    if node is not None and is_op(node, *_MOVES) and node.inputs[0] is not None:
        return _products(node.inputs[0], name)
    if node is not None and is_op(node, "Add"):
        computed = [operand for operand in node.inputs if operand is not None and constant(operand) is None]
        return [product for operand in computed for product in _products(operand, name)]
    if node is None or not (is_op(node, *_PRODUCTS) or is_kernel(node)) or weight_of(node) is None:
        raise _other_form(name, "nothing" if node is None else f"a {node.op_type}")
    return [node]


def weight_of(node: ir.Node) -> ir.Value | None:
    """The constant that a product multiplies with, integers or floats; None where it is computed."""
    encoded = None if is_kernel(node) else dequantized(node.inputs[1])
    value = node.inputs[1] if encoded is None else encoded.integers
    return value if value is not None and constant(value) is not None else None


def _other_form(slot: str, found: str) -> UnsupportedError:
    return UnsupportedError(
        mismatch(f"slot input {slot}", "a branch that is added to a layer of constant weights", found, "build the bundle again")
    )
