"""A placed ONNX graph as a tflite model: operator by operator, integers and encodings as they stand in the graph.

A value between Q and DQ is a tensor of that encoding; an operator that reads DQs and is read by a Q is an operator on integers. A Q behind
a DQ is a QUANTIZE. Without Q and DQ all is float, and with a DQ at constant weights alone LiteRT rounds activations as it runs. What each
operator becomes says the table of rules; another one is refused by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from quad.compile.agreement import encoding_of
from quad.compile.litert.layout import Order, Shape, Stored, laid_out, plain, same_numbers
from quad.compile.litert.tflite_model import ModelBuilder, TfliteModel
from quad.compile.passes.edit import constant, is_op, producer, static_shape
from quad.core.encoding import Encoding
from quad.core.errors import UnsupportedError, mismatch

_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


class Lowering:
    """One graph's lowering in progress: what rules read and write.

    Args:
        graph: placed, sorted, of static shapes.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self.builder = ModelBuilder()
        self._graph = graph
        self._stored: dict[ir.Value, Stored] = {}
        self._moved: dict[tuple[int, Order], Stored] = {}
        self._requantized: dict[tuple[int, Encoding], int] = {}

    def run(self, rules: Mapping[str, Callable[[Lowering, ir.Node], None]]) -> TfliteModel:
        """The whole graph.

        Raises:
            UnsupportedError: an operator has no rule, or has a form that its rule does not know.
        """
        for value in self._graph.inputs:
            self._input(value)
        for node in self._graph:
            if is_op(node, _QUANTIZE):
                self._quantize(node)
            elif not is_op(node, _DEQUANTIZE):
                if node.domain or node.op_type not in rules:
                    expected = f"an operator of {' | '.join(sorted(rules))}"
                    raise UnsupportedError(mismatch(f"{node.name}", expected, node.op_type, "report it with the model's name"))
                rules[node.op_type](self, node)
        outputs = [self._output(value) for value in self._graph.outputs]
        inputs = [self._stored[value].index for value in self._graph.inputs]
        return self.builder.model(str(self._graph.name), inputs, outputs)

    def shape(self, value: ir.Value | None) -> Shape:
        """A value's own shape.

        Raises:
            UnsupportedError: it is not known.
        """
        shape = static_shape(value)
        if shape is None:
            raise UnsupportedError(mismatch(f"{value and value.name}", "a static shape", "none", "export the network anew"))
        return shape

    def constant(self, value: ir.Value | None) -> tuple[NDArray[Any], Encoding | None] | None:
        """A constant operand and its encoding, behind its DQ where it has one; None for a computed value."""
        maker = producer(value, _DEQUANTIZE)
        array = constant(value if maker is None else maker.inputs[0])
        return None if array is None else (array, None if maker is None else encoding_of(maker))

    def operand(self, value: ir.Value | None) -> Stored:
        """Where a computed operand lies, or a constant in its own order."""
        if (known := self.constant(value)) is not None:
            array, encoding = known
            return Stored(self.builder.constant(constant_name(value), array, encoding), plain(array.ndim))
        return self._stored[_integers(value)]

    def encoding(self, index: int) -> Encoding | None:
        """Of a tensor."""
        return self.builder.tensors[index].encoding

    def result(self, value: ir.Value, order: Order) -> int:
        """The tensor that an operator is to write a value to."""
        written = _written(value)
        name = f"{written.name}/turned" if written.is_graph_output() and order != plain(len(order)) else str(written.name)
        dtype, encoding = self.result_type(value)
        index = self.builder.tensor(name, laid_out(self.shape(value), order), dtype, encoding)
        self._stored[written] = Stored(index, order)
        return index

    def result_type(self, value: ir.Value) -> tuple[np.dtype[Any], Encoding | None]:
        """Element type and encoding that a value is written in."""
        written = _written(value)
        maker = producer(written, _QUANTIZE)
        encoding = None if maker is None else encoding_of(maker)
        dtype = (value.dtype or ir.DataType.FLOAT).numpy() if encoding is None else encoding.dtype
        return np.dtype(dtype), encoding

    def alias(self, value: ir.Value, stored: Stored) -> None:
        """A value that is another one's tensor, of the same encoding."""
        self._stored[_written(value)] = stored

    def temporary(self, like: int, label: str, shape: Sequence[int]) -> int:
        """A tensor of another's element type and encoding."""
        tensor = self.builder.tensors[like]
        return self.builder.tensor(f"{tensor.name}/{label}", shape, tensor.dtype, tensor.encoding)

    def integers(self, label: str, values: Sequence[int]) -> int:
        """A constant vector or matrix of int32: axes, shapes."""
        return self.builder.constant(label, np.asarray(values, np.int32))

    def operator(self, kind: str, inputs: Sequence[int], outputs: Sequence[int], table: str = "", **options: Any) -> None:
        """Append an operator."""
        self.builder.operator(kind, inputs, outputs, table or f"{_camel(kind)}Options", **options)

    def reshaped(self, index: int, shape: Sequence[int], label: str = "flat") -> int:
        """A tensor's numbers in another shape."""
        if self.builder.tensors[index].shape == tuple(shape):
            return index
        output = self.temporary(index, label, shape)
        self.operator("RESHAPE", [index, self.integers("shape", shape)], [output], newShape=list(shape))
        return output

    def in_order(self, stored: Stored, order: Order) -> int:
        """The tensor that holds a value in this order, turned around where it must be."""
        if stored.order == order:
            return stored.index
        key = (stored.index, tuple(stored.order.index(axis) for axis in order))
        if key not in self._moved:
            shape = self.builder.tensors[stored.index].shape
            target = tuple(shape[axis] for axis in key[1])
            logical = tuple(shape[stored.order.index(axis)] for axis in range(len(shape)))
            if same_numbers(logical, stored.order, order):
                self._moved[key] = Stored(self.reshaped(stored.index, target, "turned"), order)
            else:
                output = self.temporary(stored.index, "turned", target)
                self.operator("TRANSPOSE", [stored.index, self.integers("perm", key[1])], [output])
                self._moved[key] = Stored(output, order)
        return self._moved[key].index

    def requantized(self, stored: Stored, encoding: Encoding | None) -> Stored:
        """The same value in another encoding; in its own where that is the one, or where it is float."""
        tensor = self.builder.tensors[stored.index]
        if tensor.encoding is None or encoding is None or same_encoding(tensor.encoding, encoding):
            return stored
        key = (stored.index, encoding)
        if key not in self._requantized:
            output = self.builder.tensor(f"{tensor.name}/requantized", tensor.shape, encoding.dtype, encoding)
            self.operator("QUANTIZE", [stored.index], [output])
            self._requantized[key] = output
        return Stored(self._requantized[key], stored.order)

    def _input(self, value: ir.Value) -> None:
        reader = next((node for node, _ in value.uses() if is_op(node, _DEQUANTIZE)), None)
        dtype = (value.dtype or ir.DataType.FLOAT).numpy()
        shape = self.shape(value)
        index = self.builder.tensor(str(value.name), shape, dtype, None if reader is None else encoding_of(reader))
        self._stored[value] = Stored(index, plain(len(shape)))

    def _output(self, value: ir.Value) -> int:
        """The tensor under the output's name, in its own order of axes."""
        stored = self._stored[value]
        tensor = self.builder.tensors[stored.index]
        if stored.is_plain and tensor.name == value.name:
            return stored.index
        shape = self.shape(value)
        output = self.builder.tensor(str(value.name), shape, tensor.dtype, tensor.encoding)
        if same_numbers(shape, stored.order, plain(len(shape))):
            self.operator("RESHAPE", [stored.index, self.integers("shape", shape)], [output], newShape=list(shape))
        else:
            perm = [stored.order.index(axis) for axis in range(len(shape))]
            self.operator("TRANSPOSE", [stored.index, self.integers("perm", perm)], [output])
        return output

    def _quantize(self, node: ir.Node) -> None:
        """Behind an operator it is that operator's encoding; behind a DQ, or a float input, an operator."""
        value = node.inputs[0]
        if node.outputs[0] in self._stored:
            return
        source, encoding = self.operand(value), encoding_of(node)
        key = (source.index, encoding)
        if key not in self._requantized:
            shape = self.builder.tensors[source.index].shape
            self._requantized[key] = self.builder.tensor(str(node.outputs[0].name), shape, encoding.dtype, encoding)
            self.operator("QUANTIZE", [source.index], [self._requantized[key]])
        self._stored[node.outputs[0]] = Stored(self._requantized[key], source.order)


def constant_name(value: ir.Value | None) -> str:
    """Of a constant operand: that of its numbers in the graph, behind its DQ where it has one."""
    return str(_integers(value).name)


def _integers(value: ir.Value | None) -> ir.Value:
    """The integers behind a DQ, or the value itself."""
    assert value is not None  # rules ask for operands that are there
    maker = producer(value, _DEQUANTIZE)
    source = value if maker is None else maker.inputs[0]
    assert source is not None
    return source


def _written(value: ir.Value) -> ir.Value:
    """The integers that a computed value becomes at once; itself where it stays float."""
    uses = tuple(value.uses())
    if len(uses) == 1 and is_op(uses[0].node, _QUANTIZE) and not value.is_graph_output():
        return uses[0].node.outputs[0]
    return value


def same_encoding(first: Encoding, second: Encoding) -> bool:
    """Whether integers of both mean the same."""
    return (first.dtype, first.scale, first.zero_point) == (second.dtype, second.scale, second.zero_point)


def _camel(kind: str) -> str:
    return "".join(word.capitalize() for word in kind.split("_"))
