"""Rules of products, and how a layer with a constant weight is written.

The weight's integers are those of the profile. One of 16 bits is two of 8: W = 255 H + L, a layer each, and their sum; no engine has a
kernel for more. What a slot brings is the second operand of a BATCH_MATMUL, as the pack lays it out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
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

_BASE = 255  # both parts keep to +-127, which kernels of 8 bits count on
_LARGEST = _BASE * 127 + 127  # as the target's table says, `int16_largest`


@dataclass(frozen=True, kw_only=True)
class ConstantLayer:
    """A layer with a constant weight, to be written once or, where that has 16 bits, twice.

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
    """Append the product of two tensors, the second with its last two axes exchanged where it is adjoint."""
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
    """Append the layer, or the two that it is the sum of."""
    if layer.encoding is None or layer.encoding.bits == 8:
        weight = lowering.builder.constant(layer.name, layer.weight, layer.encoding)
        operands = [layer.x, weight] if layer.bias == NO_TENSOR and layer.kind == "FULLY_CONNECTED" else [layer.x, weight, layer.bias]
        if layer.bias == NO_TENSOR and layer.kind == "CONV_2D":
            operands = [layer.x, weight, _no_bias(lowering, layer)]
        lowering.operator(layer.kind, operands, [output], layer.table, **layer.options)
        return
    parts = []
    shape = lowering.builder.tensors[output].shape
    for label, integers, encoding in halves(layer.weight, layer.encoding):
        part = lowering.temporary(output, label, shape)
        bias = layer.bias if label == "low" else NO_TENSOR
        write_layer(lowering, replace(layer, name=f"{layer.name}/{label}", weight=integers, encoding=encoding, bias=bias), part)
        parts.append(part)
    lowering.operator("ADD", parts, [output], potScaleInt16=False)


def halves(weight: NDArray[Any], encoding: Encoding) -> list[tuple[str, NDArray[np.int8], Encoding]]:
    """A weight of 16 bits as two of 8, `W = 255 H + L`: label, integers, encoding of each.

    Raises:
        UnsupportedError: it goes beyond what the two can hold.
    """
    wide = weight.astype(np.int32)
    if np.abs(wide).max(initial=0) > _LARGEST:
        raise UnsupportedError(mismatch("a weight of 16 bits", f"integers of at most {_LARGEST}", f"{np.abs(wide).max()}", "profile anew"))
    high = (wide + _BASE // 2) // _BASE
    narrow = msgspec.structs.replace(encoding, bits=8, largest=msgspec.UNSET)
    coarse = msgspec.structs.replace(narrow, scale=tuple(float(np.float32(_BASE * s)) for s in encoding.scale))
    return [("high", high.astype(np.int8), coarse), ("low", (wide - _BASE * high).astype(np.int8), narrow)]


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
