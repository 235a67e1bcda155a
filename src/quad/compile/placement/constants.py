"""Constants of a graph on which every value is an integer: the target's table says what each operand is, this how it is stored.

The integers of a constant are made from its numbers when they are written: a graph in placement holds the weights of no layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from quad.compile.passes import weight_permutation
from quad.compile.passes.edit import lazy_constant, new_constant
from quad.compile.targets import Target
from quad.core.encoding import Encoding, encode_range
from quad.core.errors import UnsupportedError, mismatch

_INT32 = np.iinfo(np.int32).max
WEIGHT, BIAS, FLOAT = "weight", "bias", "float32"
# Roles whose encoding follows from the constant's own values: dtype -> bits. One per tensor; unsigned with a zero point, signed symmetric.
_OWN_RANGE = {"uint8": 8, "uint16": 16, "int16": 16}


class ConstantPlacer:
    """Stores the constants of one graph as integers and gives readers their DQ.

    Args:
        profile: encodings of weights by parameter name.
        target: `constants` says the role of each operand.
    """

    def __init__(self, graph: ir.Graph, profile: Mapping[str, Encoding], target: Target) -> None:
        self._graph, self._profile, self._target = graph, profile, target
        self._scalars: dict[Encoding, tuple[ir.Value, ir.Value]] = {}
        self.encodings: dict[str, Encoding] = {}  # what each constant was stored as; of one stored twice, the first
        self._stored: dict[tuple[str, Encoding], ir.Value] = {}

    def place(self, node: ir.Node, first: Encoding | None) -> None:
        """Every float constant of a node.

        Args:
            first: encoding of its first operand, which a bias is scaled by; None where that is a constant too.
        """
        roles = self._target.constants.get(node.op_type, {})
        weight: Encoding | None = None
        for index, value in enumerate(node.inputs):
            if value is None or value.const_value is None or value.dtype != ir.DataType.FLOAT:
                continue
            role = roles.get(str(index)) or roles.get("*") or self._target.constants["*"]["*"]
            if role == FLOAT:
                continue
            if role == BIAS:
                encoding = self._bias(node, value, first, weight)
            elif role == WEIGHT:
                encoding = weight = self._with_bias(node, self._weight(node, value), first)
            else:
                encoding = own_range(value.const_value.numpy(), role)
                weight = weight or encoding
            self._read(node, index, value, encoding)

    def _weight(self, node: ir.Node, value: ir.Value) -> Encoding:
        """The profile's, along the axis on which the channels lie now; of a weight that it does not know, its own range."""
        encoding = self._profile.get(str(value.name))
        if encoding is None:
            return own_range(_tensor(value).numpy(), self._target.constants["*"]["*"])
        self._target.check_weight(node.op_type, str(value.name), encoding)
        return stored_encoding(value, encoding)

    def _with_bias(self, node: ir.Node, weight: Encoding, first: Encoding | None) -> Encoding:
        """The weight's encoding with wider steps where its channel's bias would leave 32 bits: a channel of next to nothing but a bias."""
        roles = self._target.constants.get(node.op_type, {})
        at = next((int(index) for index, role in roles.items() if role == BIAS), None)
        bias = node.inputs[at] if at is not None and at < len(node.inputs) else None
        if bias is None or bias.const_value is None or first is None:
            return weight
        least = np.abs(bias.const_value.numpy().astype(np.float64)) / (first.scale[0] * (_INT32 // 2))
        if weight.axis is None:
            least = least.max(initial=0.0, keepdims=True)
        scale = np.asarray(weight.scale, np.float64)
        return (
            weight if (least <= scale).all() else msgspec.structs.replace(weight, scale=tuple(float(s) for s in np.maximum(scale, least)))
        )

    def _bias(self, node: ir.Node, value: ir.Value, first: Encoding | None, weight: Encoding | None) -> Encoding:
        if first is None or weight is None:
            raise UnsupportedError(mismatch(f"{node.name}, bias", "a bias behind an encoded weight", "none", "report its operator"))
        scale = np.asarray(weight.scale, np.float64) * first.scale[0]
        scales = tuple(float(s) for s in scale.astype(np.float32))
        return Encoding(
            bits=32, signed=True, symmetric=True, scale=scales, zero_point=(0,) * len(scales), axis=0 if len(scales) > 1 else None
        )

    def _read(self, node: ir.Node, index: int, value: ir.Value, encoding: Encoding) -> None:
        # One copy per tensor and encoding: two biases of one value, or a gamma that two norms read, must not collide.
        key = (str(value.name), encoding)
        self.encodings.setdefault(str(value.name), encoding)
        if key not in self._stored:
            suffix = f"/{encoding.stored_as}/{sum(name == key[0] for name, _ in self._stored)}"
            self._stored[key] = integer_constant(self._graph, key[0] + suffix, value, encoding)
        dequantize = ir.node(
            "DequantizeLinear",
            [self._stored[key], *self.encoding(encoding)],
            attributes={} if encoding.axis is None else {"axis": encoding.axis},
            name=f"{node.name}/{index}/dq",
        )
        dequantize.outputs[0].name, dequantize.outputs[0].shape, dequantize.outputs[0].dtype = (
            f"{node.name}/{index}/dq",
            value.shape,
            ir.DataType.FLOAT,
        )
        self._graph.insert_before(node, dequantize)
        node.replace_input_with(index, dequantize.outputs[0])

    def encoding(self, encoding: Encoding) -> tuple[ir.Value, ir.Value]:
        """Scale and zero point as graph constants, one pair per encoding."""
        if encoding not in self._scalars:
            self._scalars[encoding] = encoding_constants(self._graph, f"encoding/{len(self._scalars)}", encoding)
        return self._scalars[encoding]


def encoding_constants(graph: ir.Graph, name: str, encoding: Encoding) -> tuple[ir.Value, ir.Value]:
    """Scale and zero point as constants of a graph, `<name>/scale` and `<name>/zero_point`."""
    scale = np.asarray(encoding.scale, np.float32)
    zero = as_file(np.asarray(encoding.zero_point, encoding.dtype), encoding)
    if encoding.axis is None:
        scale, zero = scale.reshape(()), zero.reshape(())
    return new_constant(graph, f"{name}/scale", scale), new_constant(graph, f"{name}/zero_point", zero)


def stored_encoding(weight: ir.Value, encoding: Encoding) -> Encoding:
    """A parameter's encoding along the axis on which its channels lie now."""
    permutation = weight_permutation(weight)
    if permutation is None or encoding.axis is None:
        return encoding
    return msgspec.structs.replace(encoding, axis=permutation.index(encoding.axis))


def integer_constant(graph: ir.Graph, name: str, value: ir.Value, encoding: Encoding) -> ir.Value:
    """The integers of a float constant as a further one, made when they are read.

    Args:
        encoding: along the axis on which the constant's channels lie.
    """
    numbers = _tensor(value)
    dtype = ir.DataType[encoding.stored_as.upper()]
    return lazy_constant(graph, name, lambda: as_file(encoding.quantize(numbers.numpy()), encoding), dtype, tuple(numbers.shape.numpy()))


def as_file(integers: NDArray[np.integer], encoding: Encoding) -> NDArray[Any]:
    """The integers in the element type of the file: those of 4 bits lie two in a byte there."""
    return integers.astype(ir.DataType[encoding.stored_as.upper()].numpy()) if encoding.bits == 4 else integers


def own_range(array: NDArray[np.floating], role: str) -> Encoding:
    """The encoding of a constant by its smallest and largest value."""
    low, high, signed = float(array.min(initial=0.0)), float(array.max(initial=0.0)), not role.startswith("u")
    return encode_range(low, high, bits=_OWN_RANGE[role], signed=signed, symmetric=signed)


def _tensor(value: ir.Value) -> ir.TensorProtocol:
    if value.const_value is None:
        raise UnsupportedError(mismatch(str(value.name), "a constant", "a computed value", "export the network anew"))
    return value.const_value
