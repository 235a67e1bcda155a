"""MatMul(x, w) with a computed w -> Transpose(MatMul(w^T, x^T)): the operand that an adapter, K or V brings stands on the left.

For compilers that take a computed 16-bit signed operand on that side alone. A w that was transposed just before, as slots and K are, comes
as it lies.
"""

from __future__ import annotations

import onnx_ir as ir

from quad.compile.passes.edit import Writer, constant, is_op, perm_of, producer, replace, static_shape
from quad.core.tensor_names import Role, role_of

_SLOTS = (Role.LORA_A, Role.LORA_B)


class LeftOperands(ir.passes.InPlacePass):
    """Turn every product of two computed values around; one that has a slot on its left already stays."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        products = [node for node in model.graph if _is_turned_around(node)]
        for node in products:
            _rewrite(node)
        return ir.passes.PassResult(model, bool(products))


def _is_turned_around(node: ir.Node) -> bool:
    return is_op(node, "MatMul") and constant(node.inputs[1]) is None and constant(node.inputs[0]) is None and not _is_slot(node.inputs[0])


def _is_slot(value: ir.Value | None) -> bool:
    """A or B, if only its shape has changed since."""
    while (node := producer(value, "Transpose", "Reshape")) is not None:
        value = node.inputs[0]
    return value is not None and value.is_graph_input() and role_of(str(value.name)) in _SLOTS


def _swapped(rank: int) -> tuple[int, ...]:
    return (*range(rank - 2), rank - 1, rank - 2)


def _rewrite(node: ir.Node) -> None:
    x, w, shape = node.inputs[0], node.inputs[1], static_shape(node.outputs[0])
    if x is None or w is None or shape is None:
        raise ir.passes.PassError(f"{node.name}: a shape that is not known")
    writer = Writer(node, str(node.outputs[0].name))
    swapped = [*shape[:-2], shape[-1], shape[-2]]
    product = writer.value("MatMul", [_turned(writer, w), _turned(writer, x)], swapped)
    replace(node.outputs[0], writer.transpose(product, _swapped(len(shape))))


def _turned(writer: Writer, value: ir.Value) -> ir.Value:
    """The value with its last two axes swapped; where a Transpose has just done so, what that reads."""
    rank = len(static_shape(value) or ())
    turn = value.producer()
    if is_op(turn, "Transpose") and turn is not None and turn.inputs[0] is not None and perm_of(turn) == _swapped(rank):
        return turn.inputs[0]
    return writer.transpose(value, _swapped(rank))
