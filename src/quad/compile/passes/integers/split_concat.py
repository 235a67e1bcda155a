"""Conv(Concat(a, b), W) -> Conv(a, W_a) + Conv(b, W_b), where a and b are 8-bit values of different encodings.

A skip concat has one encoding for each half (docs/method.md section 5, step 3), and no engine has an integer kernel for an input of two
scales. Divided along its input channels the convolution has two inputs of one scale each; weights keep their integers.
"""

from __future__ import annotations

import onnx_ir as ir

from quad.compile.passes.edit import Writer, axis_of, is_op, producer, replace, static_shape
from quad.compile.passes.integers.dequantized import cut, dequantized

_CHANNELS = 1


class SplitConcat(ir.passes.InPlacePass):
    """Divide every convolution whose input is a Concat of 8-bit values along the channels."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        divided = [_divide(node) for node in list(model.graph) if is_op(node, "Conv")]
        return ir.passes.PassResult(model, any(divided))


def _parts(node: ir.Node) -> list[ir.Value]:
    """The parts of its input, empty where it stays as it is."""
    concat = producer(node.inputs[0], "Concat")
    grouped = "group" in node.attributes and node.attributes["group"].as_int() != 1
    if concat is None or grouped or axis_of(concat, 4, _CHANNELS) != _CHANNELS:
        return []
    parts = [value for value in concat.inputs if value is not None and dequantized(value, ir.DataType.UINT8) is not None]
    return parts if len(parts) == len(concat.inputs) else []


def _divide(node: ir.Node) -> bool:
    parts, weight, output = _parts(node), node.inputs[1], node.outputs[0]
    shapes = [static_shape(part) for part in parts]
    shape = static_shape(output)
    if not parts or weight is None or shape is None or any(part_shape is None for part_shape in shapes):
        return False
    writer = Writer(node, str(output.name))
    weights = cut(writer, weight, _CHANNELS, [part_shape[_CHANNELS] for part_shape in shapes if part_shape is not None])
    if weights is None:
        return False
    bias = node.inputs[2:]
    total = writer.like(node, [parts[0], weights[0], *bias], shape).outputs[0]
    for part, part_weight in zip(parts[1:], weights[1:], strict=True):
        total = writer.value("Add", [total, writer.like(node, [part, part_weight], shape).outputs[0]], shape)
    replace(output, total)
    return True
