"""MatMul of tokens with a constant matrix, and the bias added behind it -> Reshape to a matrix, Gemm with the bias, Reshape back.

An accelerator's linear layer adds its bias before it rounds. Sites stay beside the layer: what an encoding says of its input holds there.
"""

from __future__ import annotations

from math import prod

import onnx_ir as ir

from quad.compile.passes.edit import Writer, constant, is_op, replace, sole_reader, static_shape
from quad.compile.passes.integers.remove_sites import is_site


class LinearToGemm(ir.passes.InPlacePass):
    """Rewrite every MatMul with a constant matrix of two axes."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        linears = [node for node in model.graph if _is_linear(node)]
        for node in linears:
            _rewrite(node)
        return ir.passes.PassResult(model, bool(linears))

    def ensures(self, model: ir.Model) -> None:
        """None is left."""
        if left := next((node for node in model.graph if _is_linear(node)), None):
            raise ir.passes.PostconditionError(f"{left.name} is still a MatMul with a constant matrix")


def _is_linear(node: ir.Node) -> bool:
    if not is_op(node, "MatMul") or static_shape(node.inputs[0]) is None or static_shape(node.outputs[0]) is None:
        return False
    weight = constant(node.inputs[1])
    return weight is not None and weight.ndim == 2


def _rewrite(node: ir.Node) -> None:
    x, weight = node.inputs
    shape = static_shape(node.outputs[0]) or ()
    bias, last = bias_behind(node)
    writer = Writer(last, str(last.outputs[0].name))
    rows = prod(shape[:-1])
    inputs = [_flat(writer, x, rows), weight] if bias is None else [_flat(writer, x, rows), weight, bias]
    gemm = writer.value("Gemm", inputs, (rows, shape[-1]))
    replace(last.outputs[0], writer.reshape(gemm, shape))


def _flat(writer: Writer, x: ir.Value | None, rows: int) -> ir.Value:
    """As a matrix; a Site of it goes behind the Reshape."""
    if x is None:
        raise ir.passes.PassError("a layer without an input")
    site = x.producer()
    width = (static_shape(x) or (1,))[-1]
    if site is None or not is_site(site) or site.inputs[0] is None:
        return writer.reshape(x, (rows, width))
    return writer.like(site, [writer.reshape(site.inputs[0], (rows, width))], (rows, width)).outputs[0]


def bias_behind(node: ir.Node) -> tuple[ir.Value | None, ir.Node]:
    """The constant that the layer's only reader adds to its channels, and the layer's last node."""
    reader = sole_reader(node.outputs[0])
    if reader is None or not is_op(reader, "Add"):
        return None, node
    other = next((value for value in reader.inputs if value is not node.outputs[0]), None)
    array = constant(other)
    if array is None or array.shape != (static_shape(node.outputs[0]) or ())[-1:]:
        return None, node
    return other, reader
