"""y = f(x, DQ(W)) -> [f(x, DQ(W_1)), f(x, DQ(W_2)), ...] by output channels, so that a large weight is never all in memory as floats.

An engine that widens weights as it runs holds all float32 numbers of a layer, 118 MB of the largest in Stable Diffusion 1.5's U-Net. Those
of a slice stay in the processor's cache until they are read. A channel of the output needs its own weights alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from quad.compile.passes.edit import Writer, axis_of, constant, is_op, producer, replace, sole_reader, static_shape
from quad.compile.passes.integers.dequantized import PART, Dequantized, cut, dequantized, write_dequantized

MOST_NUMBERS = 2**22  # of one slice: 16 MB as floats. Of 2^21 and 2^20 the U-Net above took no less memory, and the same time
_INTEGERS = (ir.DataType.UINT4, ir.DataType.INT4, ir.DataType.INT8, ir.DataType.INT16)
_LAYERS, _WEIGHT, _BIAS, _MATRIX = ("Conv", "MatMul", "Gemm"), 1, 2, 2


class SliceWeights(ir.passes.InPlacePass):
    """Slice every convolution and product whose constant weight of integers has more numbers than `most`.

    Args:
        most: numbers of one slice.
    """

    def __init__(self, most: int = MOST_NUMBERS) -> None:
        super().__init__()
        self._most = most

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        sliced = [_slice(node, self._most) for node in list(model.graph) if is_op(node, *_LAYERS)]
        return ir.passes.PassResult(model, any(sliced))


def _slice(node: ir.Node, most: int) -> bool:
    weight, shape, axis = node.inputs[_WEIGHT], static_shape(node.outputs[0]), _weight_axis(node)
    maker, numbers = producer(weight, "DequantizeLinear"), _whole_shape(weight, axis)
    bias = node.inputs[_BIAS] if len(node.inputs) > _BIAS else None
    if weight is None or maker is None or shape is None or axis is None or numbers is None or math.prod(numbers) <= most:
        return False
    if bias is not None and (constant(bias) is None or static_shape(bias) != (numbers[axis],)):
        return False
    channels_each = max(most * numbers[axis] // math.prod(numbers), 1)
    count = math.ceil(numbers[axis] / channels_each)
    sizes = [len(part) for part in np.array_split(np.arange(numbers[axis]), count)]
    # An engine that orders operators from the end computes what stands first in the file as late as it can: weights stay where they are.
    weights = cut(Writer(maker, str(weight.name)), weight, axis, sizes) or []
    writer, channels = Writer(node, str(node.outputs[0].name)), _channel_axis(node, len(shape))
    biases = [()] * count if bias is None else [(part,) for part in cut(writer, bias, 0, sizes) or []]
    parts = [
        writer.like(node, [node.inputs[0], part, *part_bias], (*shape[:channels], size, *shape[channels + 1 :])).outputs[0]
        for part, part_bias, size in zip(weights, biases, sizes, strict=True)
    ]
    replace(node.outputs[0], writer.value("Concat", parts, shape, axis=channels))
    return True


def _whole_shape(weight: ir.Value | None, axis: int | None) -> tuple[int, ...] | None:
    """Shape of a weight of integers, a scale for each channel, that one layer alone reads and that was not cut before; None for others."""
    encoded = dequantized(weight, *_INTEGERS)
    if (
        weight is None
        or encoded is None
        or encoded.axis != axis
        or constant(encoded.integers) is None
        or PART in encoded.integers.metadata_props
    ):
        return None
    return None if sole_reader(weight) is None or sole_reader(encoded.integers) is None else static_shape(encoded.integers)


def _weight_axis(node: ir.Node) -> int | None:
    """The axis of a weight on which the output's channels lie; None where a slice of them is not the same operator."""
    if node.op_type == "Conv":
        return 0 if "group" not in node.attributes or node.attributes["group"].as_int() == 1 else None
    if node.op_type == "Gemm" and "transB" in node.attributes and node.attributes["transB"].as_int():
        return 0
    return 1 if len(static_shape(node.inputs[_WEIGHT]) or ()) == _MATRIX else None


def _channel_axis(node: ir.Node, rank: int) -> int:
    return 1 if node.op_type == "Conv" else rank - 1


def join_slices(graph: ir.Graph) -> None:
    """Make layers whole again that `SliceWeights` cut, in place; names and shapes of what is within are not asked for."""
    for concat in [node for node in graph if is_op(node, "Concat")]:
        layers = [value.producer() for value in concat.inputs if value is not None]
        nodes = [node for node in layers if node is not None and is_op(node, *_LAYERS)]
        if len(nodes) > 1 and len(nodes) == len(concat.inputs) and _are_slices(nodes, concat):
            _join(nodes, concat)


def _are_slices(nodes: Sequence[ir.Node], concat: ir.Node) -> bool:
    first, weights = nodes[0], [dequantized(node.inputs[_WEIGHT], *_INTEGERS) for node in nodes]
    same = all((node.op_type, node.inputs[0], len(node.inputs)) == (first.op_type, first.inputs[0], len(first.inputs)) for node in nodes)
    cuts = all(weight is not None and constant(weight.integers) is not None and weight.axis == _weight_axis(first) for weight in weights)
    axis = concat.attributes["axis"].as_int()
    rank = len(static_shape(concat.outputs[0]) or ())
    return same and cuts and (axis == 1 if first.op_type == "Conv" else rank == 0 or axis_of(concat, rank, -1) == rank - 1)


def _join(nodes: Sequence[ir.Node], concat: ir.Node) -> None:
    first, axis = nodes[0], _weight_axis(nodes[0]) or 0
    writer = Writer(first, f"{concat.outputs[0].name}/whole")
    weights = [weight for node in nodes if (weight := dequantized(node.inputs[_WEIGHT])) is not None]
    integers = _joined(writer, [weight.integers for weight in weights], axis)
    integers.metadata_props.update(weights[0].integers.metadata_props)
    integers.metadata_props.pop(PART, None)
    scale, zeros = _joined(writer, [weight.scale for weight in weights], 0), [weight.zero for weight in weights]
    zero = None if None in zeros else _joined(writer, zeros, 0)
    first.replace_input_with(
        _WEIGHT, write_dequantized(writer, Dequantized(integers=integers, scale=scale, zero=zero, axis=weights[0].axis))
    )
    if len(first.inputs) > _BIAS:
        first.replace_input_with(_BIAS, _joined(writer, [node.inputs[_BIAS] for node in nodes], 0))
    first.outputs[0].shape = concat.outputs[0].shape
    replace(concat.outputs[0], first.outputs[0])


def _joined(writer: Writer, parts: Sequence[ir.Value | None], axis: int) -> ir.Value:
    arrays = [array for part in parts if (array := constant(part)) is not None]
    return writer.constant("whole", np.concatenate(arrays, axis=axis))
