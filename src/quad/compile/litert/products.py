"""Rules of products, and how a layer with a constant weight is written.

The weight's integers are those of the profile; one of 16 bits has become two of 8 before (`split_weight`), since no engine has a kernel
for more. What a slot brings is the second operand of a BATCH_MATMUL, as the pack lays it out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from quad.compile.litert.layout import plain
from quad.compile.litert.lowering import Lowering, constant_name
from quad.compile.litert.tflite_model import NO_TENSOR
from quad.core.encoding import Encoding
from quad.core.errors import UnsupportedError, mismatch


@dataclass(frozen=True, kw_only=True)
class ConstantLayer:
    """A layer with a constant weight.

    Args:
        kind: name of its operator; `table` and `options` are its options.
        x, bias: indices of tensors.
        name: of the weight.
        weight: output channels first.
        encoding: of the weight; None where it is float.
    """

    kind: str
    table: str
    options: dict[str, Any]
    x: int
    name: str
    weight: NDArray[Any]
    encoding: Encoding | None
    bias: int


def matmul(lowering: Lowering, node: ir.Node) -> None:
    """A product of two computed values; the second as it lies, if only its last two axes are exchanged."""
    first, second = (lowering.operand(value) for value in node.inputs)
    rank = len(second.order)
    exchanged = (*range(rank - 2), rank - 1, rank - 2)
    adjoint = second.order == exchanged
    left = lowering.in_order(first, plain(len(first.order)))
    right = second.index if adjoint else lowering.in_order(second, plain(rank))
    output = lowering.result(node.outputs[0], plain(len(lowering.shape(node.outputs[0]))))
    write_product(lowering, left, right, output, adjoint=adjoint)


def write_product(lowering: Lowering, left: int, right: int, output: int, *, adjoint: bool) -> None:
    """Append the product of two tensors, the second with its last two axes exchanged where it is adjoint.

    Raises:
        UnsupportedError: they, or the product, have two element types.
    """
    tensors = lowering.builder.tensors
    if len({tensors[index].dtype for index in (left, right, output)}) > 1:
        types = ", ".join(str(tensors[index].dtype) for index in (left, right, output))
        raise UnsupportedError(mismatch(tensors[output].name, "one element type in and out", types, "report it with the model's name"))
    lowering.operator("BATCH_MATMUL", [left, right], [output], "BatchMatMulOptions", adjX=False, adjY=adjoint)


def gemm(lowering: Lowering, node: ir.Node) -> None:
    """A linear layer with a constant weight."""
    known = lowering.constant(node.inputs[1])
    factors = [node.attributes[name].as_float() for name in ("alpha", "beta") if name in node.attributes]
    turned = "transA" in node.attributes and node.attributes["transA"].as_int()
    if known is None or turned or set(factors) - {1.0}:
        raise UnsupportedError(mismatch(f"{node.name}", "a Gemm x W + b with a constant W", "another", "report it with the model's name"))
    weight, encoding = known
    if not ("transB" in node.attributes and node.attributes["transB"].as_int()):
        weight, encoding = weight.T, _along(encoding, (1, 0))
    x = lowering.in_order(lowering.operand(node.inputs[0]), plain(2))
    options = {"keepNumDims": False, "asymmetricQuantizeInputs": lowering.encoding(x) is None and encoding is not None}
    layer = ConstantLayer(kind="FULLY_CONNECTED", table="FullyConnectedOptions", options=options, x=x, name=constant_name(node.inputs[1]),
                   weight=weight, encoding=encoding, bias=layer_bias(lowering, node, x))  # fmt: skip
    write_layer(lowering, layer, lowering.result(node.outputs[0], plain(2)))


def _along(encoding: Encoding | None, perm: tuple[int, ...]) -> Encoding | None:
    """Of a transposed weight."""
    if encoding is None or encoding.axis is None:
        return encoding
    return msgspec.structs.replace(encoding, axis=perm.index(encoding.axis % len(perm)))


def layer_bias(lowering: Lowering, node: ir.Node, x: int) -> int:
    """As LiteRT counts it: 64 bits behind inputs of 16, 32 behind inputs of 8."""
    value = node.inputs[2] if len(node.inputs) > 2 else None
    known = lowering.constant(value)
    if known is None:
        return NO_TENSOR
    array, encoding = known
    wide = lowering.builder.tensors[x].dtype == np.int16
    return lowering.builder.constant(constant_name(value), array.astype(np.int64) if wide and encoding is not None else array, encoding)


def write_layer(lowering: Lowering, layer: ConstantLayer, output: int) -> None:
    """Append the layer.

    Raises:
        UnsupportedError: its weight has more than 8 bits, or integers go in and come out in two element types: LiteRT takes such a layer
            and computes something else.
    """
    tensors = lowering.builder.tensors
    if layer.encoding is not None and layer.encoding.bits != 8:
        bits = f"one of {layer.encoding.bits}"
        raise UnsupportedError(mismatch(layer.name, "a weight of 8 bits", bits, "report it with the model's name"))
    if tensors[layer.x].dtype != tensors[output].dtype:
        types = f"{tensors[layer.x].dtype} and {tensors[output].dtype}"
        raise UnsupportedError(mismatch(tensors[output].name, "one element type in and out", types, "report it with the model's name"))
    weight = lowering.builder.constant(layer.name, layer.weight, layer.encoding)
    operands = [layer.x, weight] if layer.bias == NO_TENSOR and layer.kind == "FULLY_CONNECTED" else [layer.x, weight, layer.bias]
    if layer.bias == NO_TENSOR and layer.kind == "CONV_2D":
        operands = [layer.x, weight, _no_bias(lowering, layer)]
    lowering.operator(layer.kind, operands, [output], layer.table, **layer.options)


def _no_bias(lowering: Lowering, layer: ConstantLayer) -> int:
    """Zeros: some engines want a convolution's bias to be there."""
    channels = len(layer.weight)
    source = lowering.encoding(layer.x)
    if source is None or layer.encoding is None:
        return lowering.builder.constant(f"{layer.name}/zeros", np.zeros(channels, np.float32))
    scale = np.asarray(layer.encoding.scale, np.float64) * source.scale[0]
    encoding = Encoding(bits=32, signed=True, symmetric=True, scale=tuple(float(s) for s in scale.astype(np.float32)),
                        zero_point=(0,) * len(scale), axis=layer.encoding.axis)  # fmt: skip
    dtype = np.int64 if source.bits == 16 else np.int32
    return lowering.builder.constant(f"{layer.name}/zeros", np.zeros(channels, dtype), encoding)
