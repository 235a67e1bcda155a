"""Placement on targets that compute on integers only: every edge is quantized, every reader dequantizes for itself.

    producer -> Q -> DQ -> reader          input (integers) -> DQ -> reader          producer -> Q -> output (integers)

1. The second operand of a matmul or convolution that is no constant is signed and symmetric, 16 bits (docs/targets.md, dynamic MatMul); on
   a target whose `int16_operand` is the first, that of a matmul of two computed values.
2. A Site that the profile gives 8 bits converts: the edge keeps its 16 for all other readers. A layer that has a kernel of 8 bits reads
   them, and gives 8: its output is converted to 16 at once. Any other reader gets the 8-bit values in 16.
3. Where integers are signed, a Site of 16 bits converts as well, if its edge has another encoding: every layer reads what the profile says.
4. Constants are stored as integers: weights as the profile says, biases int32 at `s_x s_w`, norms and others as the target's table says.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np
import onnx_ir as ir

from quad.compile.passes.integers.remove_sites import is_site, site_name
from quad.compile.passes.integers.split_weight import half_encodings
from quad.compile.placement.constants import ConstantPlacer
from quad.compile.placement.edge_encodings import source_of
from quad.compile.placement.edge_ranges import is_float
from quad.compile.targets import Target
from quad.core.encoding import Encoding, encode_range
from quad.core.margins import ACTIVATION

_WEIGHTED = ("Conv", "MatMul", "Gemm")
_SECOND = 1


def place_edges(model: ir.Model, profile: Mapping[str, Encoding], edges: Mapping[str, Encoding], target: Target) -> dict[str, Encoding]:
    """Quantize a whole graph in place; its inputs and outputs become integers.

    Args:
        model: float, with Sites.
        profile: the component's encodings, for Sites of 8 bits and for weights.
        edges: of `edge_encodings`.

    Returns:
        Encodings of the constants by their names.

    Raises:
        UnsupportedError: the target has no scheme for a constant.
    """
    placer = _EdgePlacer(model.graph, profile=profile, edges=edges, target=target)
    nodes = [node for node in model.graph if not is_site(node)]
    for node in nodes:
        placer.place_reads(node)
    for node in nodes:
        placer.place_writes(node)
    placer.place_ports()
    return placer.constants


def symmetric16(encoding: Encoding, largest: int | msgspec.UnsetType = msgspec.UNSET) -> Encoding:
    """The signed symmetric 16-bit encoding that holds the same values; of a symmetric one, its exact refinement.

    Args:
        largest: magnitude of integers that it may use; UNSET for all that 16 bits have.
    """
    if encoding.signed and encoding.symmetric:
        if encoding.bits == 16:
            return encoding
        return Encoding(bits=16, signed=True, symmetric=True, scale=(encoding.scale[0] / 256.0,), zero_point=(0,))
    scale, zero = encoding.scale[0], encoding.zero_point[0]
    reach = max(encoding.qmax - zero, zero - encoding.qmin) * scale
    return encode_range(-reach, reach, bits=16, signed=True, symmetric=True).within(largest)


def refined(encoding: Encoding) -> Encoding:
    """The 16-bit encoding that holds every value of an 8-bit one with a zero point exactly: its steps are a 257th of an unsigned one's, and
    of a signed one's, where 16 bits are symmetric, a 128th."""
    if encoding.bits != 8 or (encoding.signed and encoding.symmetric):
        return encoding
    if encoding.signed:
        return Encoding(bits=16, signed=True, symmetric=True, scale=(encoding.scale[0] / 128.0,), zero_point=(0,))
    return Encoding(
        bits=16,
        signed=False,
        symmetric=False,
        scale=(float(np.float32(encoding.scale[0] / 257.0)),),
        zero_point=(encoding.zero_point[0] * 257,),
    )


def narrowed(encoding: Encoding) -> Encoding:
    """The 8-bit encoding of what was observed, unsigned or not as the 16-bit edge is, without the margin of that."""
    scale, zero = encoding.scale[0], encoding.zero_point[0]
    wide = ACTIVATION.factor
    low, high = (encoding.qmin - zero) * scale / wide, (encoding.qmax - zero) * scale / wide
    return encode_range(low, high, bits=8, signed=encoding.signed, symmetric=False)


class _EdgePlacer:
    """One graph's placement in progress."""

    def __init__(self, graph: ir.Graph, *, profile: Mapping[str, Encoding], edges: Mapping[str, Encoding], target: Target) -> None:
        self._graph, self._profile, self._edges = graph, profile, edges
        self._constants = ConstantPlacer(graph, {**profile, **half_encodings(profile)}, target)
        self._byte_kernels, self._int16_largest, self._int16_operand = target.integer, target.int16_largest, target.int16_operand
        self._signed = target.signed
        self._byte_nodes: set[ir.Node] = set()  # those that read 8 bits, and so give 8
        self._integers: dict[str, ir.Value] = {}  # edge name -> its value between Q and DQ

    @property
    def constants(self) -> dict[str, Encoding]:
        """Encodings of those that were placed."""
        return self._constants.encodings

    def place_reads(self, node: ir.Node) -> None:
        """Every float operand of a node comes from a DQ of its own."""
        operands: dict[int, Encoding] = {}
        for index, value in enumerate(node.inputs):
            if is_float(value):
                operands[index] = self._read(node, index, value)
        if 0 in operands and operands[0].bits == 8 and node.op_type in self._byte_kernels:
            self._byte_nodes.add(node)
        self._constants.place(node, operands.get(0))

    def _read(self, node: ir.Node, index: int, value: ir.Value | None) -> Encoding:
        source = source_of(value)
        assert source is not None  # `is_float` says so
        edge = self._edges[str(source.name)]
        steps = [edge, *self._conversions(node, index, value, edge)]
        integers = self._between(source, edge)
        for place, encoding in enumerate(steps):
            tag = f"{node.name}/{index}/{place}"
            if place:
                integers = self._quantize(node, self._dequantize(node, integers, steps[place - 1], f"{tag}/dq"), encoding, f"{tag}/q")
        node.replace_input_with(index, self._dequantize(node, integers, steps[-1], f"{node.name}/{index}/dq"))
        return steps[-1]

    def _conversions(self, node: ir.Node, index: int, value: ir.Value | None, edge: Encoding) -> list[Encoding]:
        """The encodings an operand is converted to on its way to this reader, in order."""
        steps: list[Encoding] = []
        last = edge
        site = self._site(value)
        if site is not None and site.bits == 8:
            steps += [site] if self._has_byte_kernel(node, index) else [site, refined(site)]
            last = steps[-1]
        elif site is not None and self._signed and site != edge:
            steps.append(site)
            last = site
        if self._is_int16_operand(node, index) and (symmetric := symmetric16(last, self._int16_largest)) != last:
            steps.append(symmetric)
        return steps

    def _is_int16_operand(self, node: ir.Node, index: int) -> bool:
        """Of a product of two computed values, that which the target wants signed; a layer's first operand is an activation."""
        second = node.inputs[_SECOND] if node.op_type in _WEIGHTED else None
        return second is not None and second.const_value is None and index == self._int16_operand

    def _has_byte_kernel(self, node: ir.Node, index: int) -> bool:
        """A layer with a constant weight of 8 bits or fewer; its input is the first operand."""
        if index != 0 or node.op_type not in self._byte_kernels:
            return False
        value = node.inputs[_SECOND]
        weight = None if value is None or value.const_value is None else self._profile.get(str(value.name))
        return weight is not None and weight.bits <= 8

    def _site(self, value: ir.Value | None) -> Encoding | None:
        node = value.producer() if value is not None else None
        return self._profile.get(site_name(node)) if node is not None and is_site(node) else None

    def _between(self, source: ir.Value, encoding: Encoding) -> ir.Value:
        """The integers of an edge; its Q is made at the first call, behind the producer."""
        name = str(source.name)
        if name not in self._integers:
            node = source.producer()
            if node is None:
                self._integers[name] = source
            else:
                self._integers[name] = self._written(node, source, encoding, name)
        return self._integers[name]

    def _written(self, node: ir.Node, value: ir.Value, encoding: Encoding, name: str) -> ir.Value:
        """Q behind the producer; where that computes in 8 bits, Q to 8 and then to 16."""
        if node in self._byte_nodes:
            byte = narrowed(encoding)
            first = self._node("QuantizeLinear", value, byte, f"{name}/q8")
            back = self._node("DequantizeLinear", first.outputs[0], byte, f"{name}/dq8")
            last = self._node("QuantizeLinear", back.outputs[0], encoding, f"{name}/q")
            self._graph.insert_after(node, (first, back, last))
            return last.outputs[0]
        node_of = self._node("QuantizeLinear", value, encoding, f"{name}/q")
        self._graph.insert_after(node, node_of)
        return node_of.outputs[0]

    def place_writes(self, node: ir.Node) -> None:
        """Graph outputs are integers."""
        for value in node.outputs:
            if value.is_graph_output() and is_float(value):
                integers = self._between(value, self._edges[str(value.name)])
                name = str(value.name)
                self._graph.outputs[list(self._graph.outputs).index(value)] = integers
                value.name, integers.name = f"{name}/float", name

    def place_ports(self) -> None:
        """Graph inputs take integers."""
        for value in self._graph.inputs:
            encoding = self._edges.get(str(value.name))
            if encoding is not None and is_float(value):
                value.type = ir.TensorType(ir.DataType.from_numpy(encoding.dtype))  # a new one: clones share the old

    def _quantize(self, before: ir.Node, value: ir.Value, encoding: Encoding, name: str) -> ir.Value:
        node_of = self._node("QuantizeLinear", value, encoding, name)
        self._graph.insert_before(before, node_of)
        return node_of.outputs[0]

    def _dequantize(self, before: ir.Node, value: ir.Value, encoding: Encoding, name: str) -> ir.Value:
        node_of = self._node("DequantizeLinear", value, encoding, name)
        self._graph.insert_before(before, node_of)
        return node_of.outputs[0]

    def _node(self, kind: str, value: ir.Value, encoding: Encoding, name: str) -> ir.Node:
        node_of = ir.node(kind, [value, *self._constants.encoding(encoding)], name=name)
        out = node_of.outputs[0]
        out.name, out.shape = name, value.shape
        out.dtype = ir.DataType.FLOAT if kind == "DequantizeLinear" else ir.DataType.from_numpy(encoding.dtype)
        return node_of
