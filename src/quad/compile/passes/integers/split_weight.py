"""A layer with a 16-bit weight -> two layers with 8-bit weights and a sum: W = 255 H + L, exactly.

For targets that read constant weights of 8 bits alone. H and L are constants of their own, `NAME/high` and `NAME/low`, each symmetric: both
keep to +-127, which kernels of 8 bits count on. Together they reach 255 * 127 + 127 = 32512, the `int16_largest` of such targets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from msgspec import UNSET
from msgspec.structs import replace as replaced
from numpy.typing import NDArray

from quad.compile.passes.edit import Writer, is_op, lazy_constant, replace, static_shape
from quad.compile.passes.layout.fold_transpose import weight_permutation
from quad.core.encoding import Encoding

_BASE, _WEIGHT = 255, 1


def half_encodings(encodings: Mapping[str, Encoding]) -> dict[str, Encoding]:
    """Name of each half -> its encoding, of every signed 16-bit encoding.

    Args:
        encodings: tensor's name -> encoding.
    """
    halves: dict[str, Encoding] = {}
    for name, encoding in encodings.items():
        if encoding.bits == 16 and encoding.signed:
            low = replaced(encoding, bits=8, largest=UNSET)
            high = replaced(low, scale=tuple(float(np.float32(step * _BASE)) for step in encoding.scale))
            halves |= {f"{name}/high": high, f"{name}/low": low}
    return halves


class SplitWeight(ir.passes.InPlacePass):
    """Split the layers with these weights; they have no bias (see `SplitBias`).

    Args:
        encodings: name of a constant -> its 16-bit encoding, along the parameter's own axes.
    """

    def __init__(self, encodings: Mapping[str, Encoding]) -> None:
        self._encodings = encodings

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        layers = [node for node in model.graph if self._concerns(node)]
        for node in layers:
            self._split(node)
        return ir.passes.PassResult(model, bool(layers))

    def _concerns(self, node: ir.Node) -> bool:
        weight = node.inputs[_WEIGHT] if is_op(node, "Conv", "Gemm", "MatMul") else None
        return weight is not None and weight.const_value is not None and weight.name in self._encodings

    def _split(self, node: ir.Node) -> None:
        x, weight, *bias = node.inputs
        shape = static_shape(node.outputs[0])
        if weight is None or shape is None or any(value is not None for value in bias):
            raise ir.passes.PassError(f"{node.name}: a layer with a bias")
        writer = Writer(node, str(node.outputs[0].name))
        products = [writer.like(node, [x, half], shape).outputs[0] for half in self._halves(node, weight)]
        replace(node.outputs[0], writer.value("Add", products, shape))

    def _halves(self, node: ir.Node, weight: ir.Value) -> tuple[ir.Value, ir.Value]:
        graph, name, numbers = node.graph, str(weight.name), weight.const_value
        if graph is None or numbers is None:
            raise ir.passes.PassError(f"{node.name}: a node outside a graph")
        if f"{name}/high" not in graph.initializers:
            encoding, permutation = self._encodings[name], weight_permutation(weight)
            if encoding.axis is not None and permutation is not None:
                encoding = replaced(encoding, axis=permutation.index(encoding.axis))
            for half, numbers_of in (("high", _high), ("low", _low)):
                make = partial(_half, numbers, encoding, numbers_of)
                value = lazy_constant(graph, f"{name}/{half}", make, ir.DataType.FLOAT, tuple(numbers.shape.numpy()))
                value.metadata_props.update(weight.metadata_props)
        return graph.initializers[f"{name}/high"], graph.initializers[f"{name}/low"]


def _half(weight: ir.TensorProtocol, encoding: Encoding, part: Callable[[NDArray[Any]], NDArray[Any]]) -> NDArray[np.float32]:
    """The numbers of one half of a weight."""
    integers = encoding.quantize(weight.numpy()).astype(np.int32)
    scale, _ = encoding.broadcast(integers.ndim)
    return (part(integers) * scale).astype(np.float32)


def _high(integers: NDArray[Any]) -> NDArray[Any]:
    high: NDArray[Any] = (integers + _BASE // 2) // _BASE * _BASE
    return high


def _low(integers: NDArray[Any]) -> NDArray[Any]:
    low: NDArray[Any] = integers - _high(integers)
    return low
