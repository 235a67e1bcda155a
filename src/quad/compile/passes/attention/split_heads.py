"""Attention over [1, H, T, d] -> H independent heads, each with its own two matmuls and softmax.

    softmax(q k^T [* scale] [+ mask]) v      ->     Concat over heads of softmax(q_h k_h^T [* scale] [+ mask_h]) v_h

The Sites of q, k and v come before the Split, once. That of the probabilities, `.p`, stands once per head under its one name: placement
gives each the same encoding. Where the heads are next put side by side, [1, H, T, d] -> [1, T, H d], they are joined so at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from quad.compile.passes.edit import Writer, axis_of, is_op, perm_of, replace, scalar, sole_reader, static_shape
from quad.compile.passes.integers.remove_sites import is_site


@dataclass(frozen=True)
class _Attention:
    """One attention: its two products, and what lies between them, in order."""

    scores: ir.Node
    between: tuple[ir.Node, ...]
    product: ir.Node

    @property
    def heads(self) -> int:
        return (static_shape(self.product.outputs[0]) or (0, 0))[1]


class SplitHeads(ir.passes.InPlacePass):
    """Rewrite every attention of more than one head."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        attentions = [attention for node in model.graph if (attention := _attention(node)) is not None]
        for attention in attentions:
            _split(attention)
        return ir.passes.PassResult(model, bool(attentions))

    def ensures(self, model: ir.Model) -> None:
        """No softmax of several heads is left between two matmuls."""
        if left := next((node for node in model.graph if _attention(node) is not None), None):
            raise ir.passes.PostconditionError(f"{left.name} still serves several heads")


def _attention(softmax: ir.Node) -> _Attention | None:
    """The attention around a Softmax over the keys; None where the pattern is another."""
    shape = static_shape(softmax.outputs[0]) if is_op(softmax, "Softmax") else None
    if shape is None or len(shape) != 4 or shape[0] != 1 or shape[1] < 2 or axis_of(softmax, 4, -1) != 3:
        return None
    between: list[ir.Node] = [softmax]
    above = _only_maker(softmax.inputs[0])
    while above is not None and is_op(above, "Add", "Mul", "Div"):
        between.insert(0, above)
        computed = [value for value in above.inputs if scalar(value) is None and _only_maker(value) is not None]
        above = _only_maker(computed[0]) if computed else None
    below = sole_reader(softmax.outputs[0])
    while below is not None and is_site(below):
        between.append(below)
        below = sole_reader(below.outputs[0])
    if above is None or below is None or not is_op(above, "MatMul") or not is_op(below, "MatMul"):
        return None
    if any(_hides_heads(value) for node in between for value in node.inputs):
        return None
    if below.inputs[0] is not between[-1].outputs[0] or any(_heads_of(value) != shape[1] for value in (*above.inputs, below.inputs[1])):
        return None
    return _Attention(above, tuple(between), below)


def _only_maker(value: ir.Value | None) -> ir.Node | None:
    return None if value is None or sole_reader(value) is None else value.producer()


def _heads_of(value: ir.Value | None) -> int:
    shape = static_shape(value)
    return shape[1] if shape is not None and len(shape) == 4 else 0


def _hides_heads(value: ir.Value | None) -> bool:
    """Has it an axis of heads that `_heads_of` does not see, such as a mask `[H, T, T]`."""
    shape = static_shape(value)
    return shape is None or (len(shape) == 3 and shape[0] != 1)


def _split(attention: _Attention) -> None:
    last, joined = _joined(attention.product)
    writer = Writer(last, str(last.outputs[0].name))
    slices: dict[int, list[ir.Value]] = {}

    def of_head(value: ir.Value | None, head: int) -> ir.Value | None:
        """One head of an operand; what has no axis of heads is the same for all."""
        if value is None or _heads_of(value) != attention.heads:
            return value
        if id(value) not in slices:
            shape = static_shape(value) or ()
            split = writer.node("Split", [value], *([(1, 1, *shape[2:])] * attention.heads), axis=1, num_outputs=attention.heads)
            slices[id(value)] = list(split.outputs)
        return slices[id(value)][head]

    heads = []
    for head in range(attention.heads):
        outputs: dict[int, ir.Value] = {}
        for node in (attention.scores, *attention.between, attention.product):
            inputs = [outputs[id(value)] if id(value) in outputs else of_head(value, head) for value in node.inputs]
            shape = static_shape(node.outputs[0]) or ()
            outputs[id(node.outputs[0])] = writer.like(node, inputs, (1, 1, *shape[2:])).outputs[0]
        heads.append(outputs[id(attention.product.outputs[0])])
    _, count, tokens, width = static_shape(attention.product.outputs[0]) or (1, 0, 0, 0)
    if joined is None:
        replace(last.outputs[0], writer.value("Concat", heads, (1, count, tokens, width), axis=1))
    else:
        replace(last.outputs[0], writer.reshape(writer.value("Concat", heads, (1, 1, tokens, count * width), axis=3), joined))


def _joined(product: ir.Node) -> tuple[ir.Node, tuple[int, ...] | None]:
    """The last node of an attention: the Reshape that puts the heads side by side and its shape, or the product itself."""
    turn = sole_reader(product.outputs[0])
    if turn is not None and is_op(turn, "Transpose") and perm_of(turn) == (0, 2, 1, 3):
        reshape = sole_reader(turn.outputs[0])
        _, tokens, count, width = static_shape(turn.outputs[0]) or (0, 0, 0, 0)
        shape = None if reshape is None else static_shape(reshape.outputs[0])
        if reshape is not None and is_op(reshape, "Reshape") and shape is not None and shape[-2:] == (tokens, count * width):
            return reshape, shape
    return product, None
