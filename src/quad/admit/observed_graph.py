"""A Q/DQ graph with four numbers beside each quantizer, made from its protobuf as it lies on disk.

The runtime's install has no library for ONNX graphs, but it has protobuf, which keeps the fields that a description does not name. So the
few messages that are changed are described here, by ONNX's own numbers, and all else of the file passes through as it is. Weights beside
the file stay there. Source: the ONNX specification, `onnx.proto` (IR version 3 and later).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from quad.core.component_call import UNET_INPUTS
from quad.core.errors import BackendError, mismatch
from quad.core.tensor_names import quantized_tensor

Range = tuple[float, float]
NUMBERS = ("lost", "all", "min", "max")  # of one site: energy that its range cuts off, energy of all, smallest and largest value

# Message -> field -> (number, type; a capital is another message here, * is repeated).
_MESSAGES: Mapping[str, Mapping[str, tuple[int, str]]] = {
    "Model": {"graph": (7, "Graph")},
    "Graph": {"node": (1, "*Node"), "initializer": (5, "*Tensor"), "output": (12, "*ValueInfo"),
              "value_info": (13, "*ValueInfo")},
    "Node": {
        "input": (1, "*string"), "output": (2, "*string"), "name": (3, "string"), "op_type": (4, "string"), "attribute": (5, "*Attribute"),
        "domain": (7, "string"),
    },
    "Attribute": {"name": (1, "string"), "i": (3, "int64"), "type": (20, "int32")},
    "Tensor": {"dims": (1, "*int64"), "data_type": (2, "int32"), "int32_data": (5, "*int32"), "float_data": (4, "*float"),
               "name": (8, "string"), "raw_data": (9, "bytes")},
    "ValueInfo": {"name": (1, "string"), "type": (2, "Type")},
    "Type": {"tensor_type": (1, "TensorType")},
    "TensorType": {"elem_type": (1, "int32"), "shape": (2, "Shape")},
    "Shape": {"dim": (1, "*Dimension")},
    "Dimension": {},
}  # fmt: skip
_FLOAT, _INT_ATTRIBUTE = 1, 2
_MOVES = ("Transpose", "Pad", "Slice", "Split", "Concat", "Reshape", "Squeeze", "Unsqueeze")  # of integers before a kernel
_PADDED_WITH = 2  # which input of Pad
_DTYPES = {1: "<f4", 2: "u1", 3: "i1", 4: "<u2", 5: "<i2"}  # of a scale and of zero points, by ONNX's numbers


def observed_graph(data: bytes) -> tuple[bytes, dict[str, Range]]:
    """The graph with the numbers of each site behind its outputs, in the order of `NUMBERS`.

    For an engine that keeps the graph's order: the numbers stand before the site's own node, so that an activation is freed at once, and a
    weight becomes floats when whoever reads it is due. A graph has all of these at its beginning: of Stable Diffusion 1.5's U-Net 3.4 GB.

    Args:
        data: an ONNX file's bytes.

    Returns:
        The new file's bytes, and site -> smallest and largest value that its quantizer can tell apart, in the order of the outputs; empty
        where the graph has no quantizer of a whole tensor, such as a vendor's binary or a float graph.

    Raises:
        BackendError: it is no ONNX graph, or a site's zero point is no constant.
    """
    model = _parse(data)
    graph, constants = model.graph, {tensor.name: tensor for tensor in model.graph.initializer}
    nodes: list[Any] = []
    ranges: dict[str, Range] = {}
    for node in _late(graph.node):
        site = quantized_tensor(node.name) if node.op_type == "QuantizeLinear" else None
        if site is not None and _is_scalar(constants.get(node.input[1])):
            low, high = ranges[site] = _range(node, constants)
            ends = [_constant(graph, f"{site}/{end}", value) for end, value in (("low", low), ("high", high))]
            nodes += _numbers(graph, site, node.input[0], ends)
        nodes.append(node)
    if not ranges:
        return data, {}
    del graph.node[:]  # what was taken out of it stays a message
    graph.node.extend(nodes)
    return model.SerializeToString(), ranges


def float_activations(data: bytes) -> bytes | None:
    """The graph without the rounding and clipping of its activations: who read a rounded one reads it as it was, integer kernels too.

    Weights stay as they are. The nodes stand in the order of `observed_graph`.

    Args:
        data: an ONNX file's bytes.

    Returns:
        The new file's bytes; None where something else reads an activation's integers.

    Raises:
        BackendError: it is no ONNX graph.
    """
    model = _parse(data)
    graph, constants = model.graph, {tensor.name: tensor for tensor in model.graph.initializer}
    answers = {output.name for output in graph.output}
    integers, floats, nodes = set[str](), dict[str, str](), []  # activations as integers, and who is read in place of whom
    for node in _late(graph.node):
        of_integers = [name in integers for name in node.input]
        node.input[:] = [floats.get(name, name) for name in node.input]
        if node.op_type == "QuantizeLinear" and quantized_tensor(node.name) is not None and _is_scalar(constants.get(node.input[1])):
            integers.add(node.output[0])
            floats[node.output[0]] = node.input[0]
        elif not any(of_integers):
            nodes.append(node)
        elif node.op_type == "DequantizeLinear" and node.output[0] not in answers:
            floats[node.output[0]] = node.input[0]
        elif node.op_type in _MOVES:
            integers.update(node.output)
            if node.op_type == "Pad" and len(node.input) > _PADDED_WITH:
                node.input[_PADDED_WITH] = ""  # zero, which is what its zero point means
            nodes.append(node)
        elif node.op_type == "MatMulIntegerToFloat":
            nodes += _float_product(node, computed=of_integers[1])
        else:
            return None
    del graph.node[:]
    graph.node.extend(nodes)
    typed = [value for value in graph.value_info if value.name not in integers]  # what is moved is no integer any more
    del graph.value_info[:]
    graph.value_info.extend(typed)
    changed: bytes = model.SerializeToString()
    return changed


def _float_product(node: Any, *, computed: bool) -> Iterator[Any]:
    """ONNX Runtime's `MatMulIntegerToFloat(x, W, x's scale, W's scale, x's zero, W's zero, bias)` of an x that is no integer.

    Args:
        computed: W is an activation too.
    """
    given: list[str] = [*node.input]
    x, weight, _, scale, _, zero, bias = given + [""] * (7 - len(given))
    weights, product = (f"{node.output[0]}/{part}" for part in ("weights", "product"))
    if not computed:
        dequantize = _message("Node")(op_type="DequantizeLinear", input=[weight, scale, *([zero] if zero else [])], output=[weights])
        yield from _wait_for(x, dequantize)
    yield _message("Node")(op_type="MatMul", input=[x, weight if computed else weights], output=[product if bias else node.output[0]])
    if bias:
        yield _message("Node")(op_type="Add", input=[product, bias], output=[node.output[0]])


def _late(nodes: Sequence[Any]) -> Iterator[Any]:
    """The nodes in their order, but what depends on no call's inputs stands before its first reader, and is made when that one is due."""
    of_call: set[str] = set(UNET_INPUTS)
    waiting: dict[str, Any] = {}

    def needed(node: Any, activation: str) -> Iterator[Any]:
        for name in node.input:
            if (before := waiting.get(name)) is not None:
                for output in before.output:
                    del waiting[output]
                yield from needed(before, activation)
        if node.op_type == "DequantizeLinear" and of_call.isdisjoint(node.input):
            yield from _wait_for(activation, node)
        else:
            yield node

    for node in nodes:
        activation = next((name for name in node.input if name in of_call), None)
        if activation is None:
            waiting |= dict.fromkeys(node.output, node)
        else:
            of_call.update(node.output)
            yield from needed(node, activation)
    yield from {node.output[0]: node for node in waiting.values()}.values()  # what nobody reads, or the graph gives as it is


def _wait_for(activation: str, node: Any) -> Iterator[Any]:
    """A DequantizeLinear to whose scale a zero is added that is counted from an activation: the same floats, but not before it.

    The engine takes nodes in their order as far as they can run. Where it has to wait, for a normalization that it has replaced by many
    nodes at the end, it would go on with what can always run: all weights.
    """
    output, scale = node.output[0], node.input[1]
    size, count, zero, late = (f"{output}/{part}" for part in ("size", "count", "zero", "late"))
    yield _message("Node")(op_type="Size", input=[activation], output=[size])
    yield _message("Node")(op_type="Cast", input=[size], output=[count], attribute=[_whole("to", _FLOAT)])
    yield _message("Node")(op_type="Sub", input=[count, count], output=[zero])
    yield _message("Node")(op_type="Add", input=[scale, zero], output=[late])
    node.input[1] = late
    yield node


def _whole(name: str, number: int) -> Any:
    """An attribute that is a whole number."""
    return _message("Attribute")(name=name, i=number, type=_INT_ATTRIBUTE)


def _parse(data: bytes) -> Any:
    try:
        return _message("Model").FromString(data)
    except DecodeError as error:
        raise BackendError(mismatch("the bundle's U-Net", "an ONNX graph", f"none ({error})", "build the bundle again")) from error


def _is_scalar(tensor: Any) -> bool:
    return tensor is not None and all(size == 1 for size in tensor.dims)


def _value(tensor: Any) -> Any:
    """The one number of a constant that stands in the graph.

    Raises:
        BackendError: it does not.
    """
    dtype, numbers = np.dtype(_DTYPES.get(tensor.data_type, "V")), [*tensor.float_data, *tensor.int32_data]
    if dtype.kind != "V" and tensor.raw_data:
        return np.frombuffer(tensor.raw_data, dtype)[0]
    if dtype.kind == "V" or not numbers:
        raise BackendError(mismatch(f"constant {tensor.name}", "one number in the graph", "none", "build the bundle again"))
    return dtype.type(numbers[0])


def _range(node: Any, constants: Mapping[str, Any]) -> Range:
    """Smallest and largest value that a Q node can tell apart."""
    zero = constants.get(node.input[2]) if len(node.input) > 2 else None
    if zero is None:
        raise BackendError(mismatch(f"node {node.name}", "scale and zero point as constants", "none", "build the bundle again"))
    point, step = _value(zero), float(_value(constants[node.input[1]]))
    info = np.iinfo(point.dtype)
    # Half a step beyond its end is still rounded to the end.
    return (int(info.min) - int(point) - 0.5) * step, (int(info.max) - int(point) + 0.5) * step


def _numbers(graph: Any, site: str, x: str, ends: list[str]) -> Iterator[Any]:
    """The nodes of one site's numbers; their results become outputs of the graph."""
    clipped, cut = f"{site}/clipped", f"{site}/cut"
    yield _message("Node")(op_type="Clip", input=[x, *ends], output=[clipped])
    yield _message("Node")(op_type="Sub", input=[x, clipped], output=[cut])
    kinds = (("ReduceSumSquare", cut), ("ReduceSumSquare", x), ("ReduceMin", x), ("ReduceMax", x))
    for number, (kind, of) in zip(NUMBERS, kinds, strict=True):
        name = f"{site}/{number}"
        yield _message("Node")(op_type=kind, input=[of], output=[name], attribute=[_whole("keepdims", 0)])
        scalar = _message("TensorType")(elem_type=_FLOAT, shape=_message("Shape")())
        graph.output.append(_message("ValueInfo")(name=name, type=_message("Type")(tensor_type=scalar)))


def _constant(graph: Any, name: str, number: float) -> str:
    graph.initializer.append(_message("Tensor")(name=name, data_type=_FLOAT, raw_data=np.array(number, "<f4").tobytes()))
    return name


def _message(name: str) -> Any:
    return _messages()[name]


@cache
def _messages() -> dict[str, Any]:
    """The classes of `_MESSAGES`, in a pool of their own: another library may know ONNX's by their real names."""
    file = descriptor_pb2.FileDescriptorProto(name="observed.proto", package="observed", syntax="proto2")
    kinds = descriptor_pb2.FieldDescriptorProto
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            plain = kind.removeprefix("*")
            added = message.field.add(name=field, number=number, label=kinds.LABEL_REPEATED if kind != plain else kinds.LABEL_OPTIONAL)
            if plain in _MESSAGES:
                added.type, added.type_name = kinds.TYPE_MESSAGE, f".observed.{plain}"
            else:
                added.type = kinds.Type.Value(f"TYPE_{plain.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"observed.{name}")) for name in _MESSAGES}
