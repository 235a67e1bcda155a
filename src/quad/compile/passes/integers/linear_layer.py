"""A MatMul or Gemm as one linear layer, `x W + b`, with its bias wherever it is added."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from quad.compile.passes.edit import constant, is_op, sole_reader, static_shape


@dataclass(frozen=True, kw_only=True)
class LinearLayer:
    """A layer.

    Args:
        turned: its weight is stored as `(out, in)`.
        bias: one number for each output, None for none.
        output: the product, or the sum with the bias.
    """

    turned: bool
    bias: ir.Value | None
    output: ir.Value

    @staticmethod
    def of(node: ir.Node) -> LinearLayer | None:
        """The layer of a MatMul with what is added to it, or of a Gemm without factors; None for other nodes."""
        if is_op(node, "MatMul"):
            bias, output = _added(node)
            return LinearLayer(turned=False, bias=bias, output=output)
        if not is_op(node, "Gemm") or not _is_plain(node):
            return None
        given = node.inputs[2] if len(node.inputs) > 2 else None
        bias, output = (given, node.outputs[0]) if len(node.inputs) > 2 else _added(node)
        return LinearLayer(turned=_is_set(node, "transB"), bias=bias, output=output)

    @property
    def channel_axis(self) -> int:
        """The axis of the stored weight on which outputs lie."""
        return 0 if self.turned else 1


def _is_set(node: ir.Node, name: str) -> bool:
    return name in node.attributes and bool(node.attributes[name].as_int())


def _is_plain(node: ir.Node) -> bool:
    factors = all(node.attributes[name].as_float() == 1.0 for name in ("alpha", "beta") if name in node.attributes)
    bias = len(node.inputs) < 3 or node.inputs[2] is None or _is_bias(node.inputs[2], node.outputs[0])
    return factors and bias and not _is_set(node, "transA")


def _is_bias(value: ir.Value | None, product: ir.Value) -> bool:
    """One number for each column: a kernel reads so many and spreads none."""
    shape = static_shape(product)
    return shape is not None and static_shape(value) == shape[-1:]


def _added(node: ir.Node) -> tuple[ir.Value | None, ir.Value]:
    """The constant that alone is added to a product, and the sum; else nothing, and the product."""
    output = node.outputs[0]
    add = sole_reader(output)
    if add is not None and is_op(add, "Add"):
        addends = [value for value in add.inputs if value is not output]
        if len(addends) == 1 and constant(addends[0]) is not None and _is_bias(addends[0], output):
            return addends[0], add.outputs[0]
    return None, output
