"""The binary in a compiled `.tflite`: one DISPATCH_OP that names its place, and a graph of ONNX that runs it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from ai_edge_litert import schema_py_generated as schema
from flatbuffers import flexbuffers
from onnx import TensorProto, helper

from quad.core.errors import BackendError, mismatch
from quad.core.storage.files import write_bytes

_DISPATCH = b"DISPATCH_OP"
_OTHER = re.compile(r"[^0-9A-Za-z_]")
_TYPES: dict[int, tuple[np.dtype[Any], int]] = {
    schema.TensorType.FLOAT32: (np.dtype(np.float32), TensorProto.FLOAT),
    schema.TensorType.INT8: (np.dtype(np.int8), TensorProto.INT8),
    schema.TensorType.INT16: (np.dtype(np.int16), TensorProto.INT16),
    schema.TensorType.INT32: (np.dtype(np.int32), TensorProto.INT32),
}


@dataclass(frozen=True, kw_only=True)
class Binding:
    """An input or output of a binary.

    Args:
        name: the file's.
        port: the binary's, which spells names with letters, digits and underscores alone.
        kind: its element type in ONNX.
    """

    name: str
    port: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    kind: int


@dataclass(frozen=True, kw_only=True)
class Dispatch:
    """A compiled file's one operator.

    Args:
        graph: the binary's name of the graph.
        binary: what the vendor's compiler wrote.
    """

    graph: str
    binary: bytes
    inputs: tuple[Binding, ...]
    outputs: tuple[Binding, ...]


def read_dispatch(compiled: Path) -> Dispatch:
    """The one operator of a compiled file.

    Raises:
        BackendError: there is another one, so that part of the graph stays on the CPU.
    """
    content = compiled.read_bytes()
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    graph = model.subgraphs[0]
    kinds = [model.operatorCodes[node.opcodeIndex].customCode for node in graph.operators]
    if kinds != [_DISPATCH]:
        found = f"{kinds.count(_DISPATCH)} beside {len(kinds) - kinds.count(_DISPATCH)} others"
        raise BackendError(mismatch(compiled.name, "one compiled operator", found, "report it with the model's name"))
    node = graph.operators[0]
    options = flexbuffers.GetRoot(bytearray(bytes(node.customOptions))).AsMap
    start, size = options["bytecode_offset"].AsInt, options["bytecode_size"].AsInt
    return Dispatch(
        graph=options["name"].AsString, binary=content[start : start + size],
        inputs=_bindings(graph, node.inputs), outputs=_bindings(graph, node.outputs),
    )  # fmt: skip


def _bindings(graph: schema.SubGraphT, places: Sequence[int]) -> tuple[Binding, ...]:
    bindings = []
    for place in places:
        tensor = graph.tensors[place]
        dtype, kind = _TYPES[tensor.type]
        name = tensor.name.decode()
        bindings.append(Binding(name=name, port=_OTHER.sub("_", name), shape=tuple(map(int, tensor.shape)), dtype=dtype, kind=kind))
    return tuple(bindings)


def write_context(dispatch: Dispatch, folder: Path) -> Path:
    """The binary behind one EPContext node, for ONNX Runtime's QNN provider.

    Returns:
        The graph's file in `folder`.
    """
    binary, pointer = folder / "context.bin", folder / "context.onnx"
    write_bytes(binary, dispatch.binary)
    inputs, outputs = (
        [helper.make_tensor_value_info(each.port, each.kind, each.shape) for each in some] for some in (dispatch.inputs, dispatch.outputs)
    )
    node = helper.make_node(
        "EPContext", [each.port for each in dispatch.inputs], [each.port for each in dispatch.outputs], name=dispatch.graph,
        domain="com.microsoft", main_context=1, embed_mode=0, ep_cache_context=binary.name, source="QNNExecutionProvider",
        partition_name=dispatch.graph,
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(helper.make_graph([node], "context", inputs, outputs), opset_imports=opsets, ir_version=10), pointer)
    return pointer
