"""MatMul(x, DQ(W4)) + b of float x -> ONNX Runtime's MatMulNBits, which widens a few columns at a time: no floats of the whole weight.

The kernel's scales are of blocks of inputs; those of a channel are spread over its blocks when the graph runs. It is asked to compute in
float32: told nothing it may, told 4 it does round inputs to 8 bits.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from quad.compile.passes.edit import Writer, constant, producer, replace, sole_reader, static_shape
from quad.compile.passes.integers.dequantized import Dequantized, dequantized
from quad.compile.passes.integers.linear_layer import LinearLayer
from quad.compile.passes.integers.remove_sites import CONTRIBUTED

KERNEL = "MatMulNBits"
NIBBLES = "quad.nibbles"  # of a constant with two integers in a byte, by outputs: the axes `[out, in]` in the order that they had
_BLOCKS, _FLOAT32 = (256, 128, 64, 32, 16), 1  # inputs of a block that the kernel has code for; its `accuracy_level`
_WEIGHT = 1


class FourBitMatMul(ir.passes.InPlacePass):
    """Rewrite every linear layer of float input with a weight of 4 bits, a scale and a zero point for each output."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        rewritten = [_rewrite(node) for node in list(model.graph)]
        if any(rewritten):
            model.opset_imports[CONTRIBUTED] = 1
        return ir.passes.PassResult(model, any(rewritten))


def _rewrite(node: ir.Node) -> bool:
    layer = LinearLayer.of(node)
    weight = None if layer is None else dequantized(node.inputs[_WEIGHT], ir.DataType.UINT4)
    maker = None if weight is None else producer(node.inputs[_WEIGHT], "DequantizeLinear")
    if layer is None or weight is None or maker is None or dequantized(node.inputs[0], ir.DataType.UINT8) is not None:
        return False  # integers have a faster kernel
    matrix, block = _matrix(node, layer, weight), 0
    if matrix is not None:
        block = next((block for block in _BLOCKS if matrix.shape[1] % block == 0), 0)
    if matrix is None or not block:
        return False
    outputs, inputs = matrix.shape
    writer, shape = Writer(node, f"{layer.output.name}/four"), static_shape(layer.output) or ()
    # An engine that orders operators from the end computes what stands first in the file as late as it can: there the DQ stands.
    scale, zero = _spread(Writer(maker, f"{layer.output.name}/spread"), weight, inputs // block)
    _store(weight.integers, matrix, block, turned=layer.turned)
    kernel = writer.node(
        KERNEL, [node.inputs[0], weight.integers, scale, zero, None, layer.bias], shape,
        K=inputs, N=outputs, bits=4, block_size=block, accuracy_level=_FLOAT32,
    )  # fmt: skip
    kernel.domain = CONTRIBUTED
    replace(layer.output, kernel.outputs[0])
    return True


def _matrix(node: ir.Node, layer: LinearLayer, weight: Dequantized) -> NDArray[np.uint8] | None:
    """The weight `(out, in)`; None where it is none with a scale for each output, or somebody else reads it."""
    dequantize, array = node.inputs[_WEIGHT], constant(weight.integers)
    if array is None or array.ndim != 2 or weight.axis != layer.channel_axis or weight.zero is None or dequantize is None:
        return None
    if sole_reader(dequantize) is None or sole_reader(weight.integers) is None:
        return None
    return (array if layer.turned else array.T).astype(np.uint8)


def _spread(writer: Writer, weight: Dequantized, blocks: int) -> tuple[ir.Value, ir.Value]:
    """Scale and zero point of each block; of two blocks the zero points share a byte."""
    scale, zero = constant(weight.scale), constant(weight.zero)
    if scale is None or zero is None:
        raise ir.passes.PassError(f"{weight.integers.name}: a constant encoding is needed")
    twice = (zero.astype(np.uint8) * np.uint8(17))[:, None]
    spread = []
    for label, column, count in (("scale", scale.reshape(-1, 1), blocks), ("zero_point", twice, (blocks + 1) // 2)):
        shape = (len(column), count)
        spread.append(
            writer.value("Expand", [writer.constant(label, column), writer.constant("shape", np.asarray(shape, np.int64))], shape)
        )
    return spread[0], spread[1]


def _store(value: ir.Value, matrix: NDArray[np.uint8], block: int, *, turned: bool) -> None:
    """Write integers `(out, in)` in the kernel's layout: of two neighbours along the inputs the first is the low half of a byte."""
    packed = (matrix[:, 0::2] | matrix[:, 1::2] << 4).reshape(len(matrix), -1, block // 2)
    value.const_value = ir.tensor(packed, name=value.name)
    value.shape, value.type = ir.Shape(packed.shape), ir.TensorType(ir.DataType.UINT8)
    value.metadata_props[NIBBLES] = json.dumps([0, 1] if turned else [1, 0])


def unpacked(value: ir.Value) -> NDArray[Any] | None:
    """A constant's numbers, those that this pass has packed as they lay before; None for a computed value."""
    array = constant(value)
    if array is None or NIBBLES not in value.metadata_props:
        return array
    matrix = np.stack([array & 15, array >> 4], axis=-1).reshape(len(array), -1)
    return matrix.transpose(json.loads(value.metadata_props[NIBBLES]))
