"""Tflite models as bytes, and the encodings of a file read back. The schema's classes are those that LiteRT ships."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from quad.compile.litert.tflite_model import Operator, Tensor, TfliteModel
from quad.core.errors import UnsupportedError, mismatch

SIGNATURE = "serving_default"
_IDENTIFIER = b"TFL3"
_VERSION = 3
_MOST_BYTES = 2_000_000_000  # offsets within a file have 31 bits
_ALIGNMENT = 16  # of constants: engines map the file and read them where they lie
_LAST_OLD_CODE = 127  # operators beyond it have no code of eight bits
_TYPES = {
    np.dtype(np.float32): schema.TensorType.FLOAT32,
    np.dtype(np.int8): schema.TensorType.INT8,
    np.dtype(np.int16): schema.TensorType.INT16,
    np.dtype(np.int32): schema.TensorType.INT32,
    np.dtype(np.int64): schema.TensorType.INT64,
    np.dtype(np.bool_): schema.TensorType.BOOL,
}
# What readers look at to know whether they know an operator on these types: (float, int8, int16), as LiteRT's own converter counts.
_VERSIONS = {
    "ADD": (1, 2, 3),
    "BATCH_MATMUL": (1, 2, 3),
    "CONCATENATION": (1, 2, 3),
    "CONV_2D": (1, 3, 4),
    "DEQUANTIZE": (1, 2, 3),
    "FULLY_CONNECTED": (1, 5, 7),
    "GATHER": (1, 2, 4),
    "GELU": (1, 2, 2),
    "LOGISTIC": (1, 2, 3),
    "MEAN": (1, 2, 3),
    "MUL": (1, 2, 4),
    "PAD": (1, 2, 3),
    "QUANTIZE": (1, 1, 2),
    "RELU": (1, 2, 3),
    "RSQRT": (1, 2, 3),
    "SLICE": (1, 2, 4),
    "SOFTMAX": (1, 2, 3),
    "SUB": (1, 2, 5),
    "TANH": (1, 2, 3),
    "TRANSPOSE": (1, 2, 4),
}
_DYNAMIC_VERSIONS = {"CONV_2D": 5, "FULLY_CONNECTED": 12}  # float inputs, weights of 8 bits per channel


class _AlignedBuffer(schema.BufferT):  # type: ignore[misc]
    """Bytes at a multiple of 16: the generated class aligns to one."""

    def Pack(self, builder: flatbuffers.Builder) -> Any:
        """Write it."""
        if self.data is None:
            return super().Pack(builder)
        content = self.data
        builder.StartVector(1, len(content), _ALIGNMENT)
        builder.head -= len(content)
        builder.Bytes[builder.head : builder.head + len(content)] = content
        builder.vectorNumElems = len(content)
        data = builder.EndVector()
        schema.BufferStart(builder)
        schema.BufferAddData(builder, data)
        return schema.BufferEnd(builder)


def serialize(model: TfliteModel) -> bytes:
    """The bytes of a `.tflite` file.

    Raises:
        UnsupportedError: its constants are more than the format can hold.
    """
    size = sum(tensor.data.nbytes for tensor in model.tensors if tensor.data is not None)
    if size > _MOST_BYTES:
        expected = f"constants of at most {_MOST_BYTES / 1e9:.1f} GB in one file"
        raise UnsupportedError(mismatch(f"{model.name} for LiteRT", expected, f"{size / 1e9:.1f} GB", "build with weights of 8 bits"))
    written = schema.ModelT()
    written.version, written.description = _VERSION, "quad"
    codes: dict[tuple[str, int], int] = {}
    graph = schema.SubGraphT()
    graph.name, graph.inputs, graph.outputs = model.name, list(model.inputs), list(model.outputs)
    written.buffers = [_AlignedBuffer()]  # the first is empty, for what is no constant
    graph.tensors = []
    for tensor in model.tensors:
        graph.tensors.append(_tensor(tensor, len(written.buffers) if tensor.data is not None else 0))
        if tensor.data is not None:
            buffer = _AlignedBuffer()
            buffer.data = tensor.data.tobytes()
            written.buffers.append(buffer)
    graph.operators = [
        _operator(node, codes.setdefault((node.kind, _version(node, model.tensors)), len(codes))) for node in model.operators
    ]
    written.operatorCodes = [_code(kind, version) for kind, version in codes]
    written.subgraphs = [graph]
    written.signatureDefs = [_signature(model)]
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(written.Pack(builder), file_identifier=_IDENTIFIER)
    return bytes(builder.Output())


def _tensor(tensor: Tensor, buffer: int) -> Any:
    written = schema.TensorT()
    written.name, written.shape, written.type = tensor.name, list(tensor.shape), _TYPES[tensor.dtype]
    written.buffer, written.hasRank = buffer, True
    encoding = tensor.encoding
    if encoding is not None:
        parameters = schema.QuantizationParametersT()
        parameters.scale = np.asarray(encoding.scale, np.float32)
        parameters.zeroPoint = np.asarray(encoding.zero_point, np.int64)
        parameters.quantizedDimension = encoding.axis or 0
        written.quantization = parameters
    return written


def _operator(node: Operator, code: int) -> Any:
    written = schema.OperatorT()
    written.opcodeIndex, written.inputs, written.outputs = code, list(node.inputs), list(node.outputs)
    if node.table:
        options = getattr(schema, f"{node.table}T")()
        for name, value in node.options.items():
            if not hasattr(options, name):
                raise AttributeError(f"{node.table} has no field {name}")
            setattr(options, name, value)
        written.builtinOptionsType, written.builtinOptions = getattr(schema.BuiltinOptions, node.table), options
    return written


def _code(kind: str, version: int) -> Any:
    written = schema.OperatorCodeT()
    written.builtinCode = getattr(schema.BuiltinOperator, kind)
    written.deprecatedBuiltinCode, written.version = min(written.builtinCode, _LAST_OLD_CODE), version
    return written


def _version(node: Operator, tensors: tuple[Tensor, ...]) -> int:
    operands = [tensors[index] for index in node.inputs if index >= 0]
    dtype = operands[0].dtype
    if node.kind in _DYNAMIC_VERSIONS and dtype == np.float32 and operands[1].dtype == np.int8:
        return _DYNAMIC_VERSIONS[node.kind]
    column = {np.dtype(np.int8): 1, np.dtype(np.int16): 2}.get(dtype, 0)
    return _VERSIONS.get(node.kind, (1, 1, 1))[column]


def _signature(model: TfliteModel) -> Any:
    def maps(indices: tuple[int, ...]) -> list[Any]:
        named = []
        for index in indices:
            entry = schema.TensorMapT()
            entry.name, entry.tensorIndex = model.tensors[index].name, index
            named.append(entry)
        return named

    signature = schema.SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = SIGNATURE, 0
    signature.inputs, signature.outputs = maps(model.inputs), maps(model.outputs)
    return signature


@dataclass(frozen=True, kw_only=True)
class WrittenTensor:
    """Type and encoding of one tensor as a file has them.

    Args:
        scale, zero_point: empty for floats and for integers that stand for themselves.
        axis: of scales that are more than one.
    """

    dtype: str
    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    axis: int


_TYPE_NAMES = {value: name for name, value in vars(schema.TensorType).items() if isinstance(value, int)}


def read_tensors(content: bytes) -> dict[str, WrittenTensor]:
    """Every tensor of a file's one graph by its name."""
    graph = schema.Model.GetRootAs(content, 0).Subgraphs(0)
    tensors = {}
    for index in range(graph.TensorsLength()):
        tensor = graph.Tensors(index)
        parameters = tensor.Quantization()
        encoded = parameters is not None and parameters.ScaleLength() > 0
        tensors[tensor.Name().decode()] = WrittenTensor(
            dtype=_TYPE_NAMES[tensor.Type()].lower(),
            scale=_numbers(parameters.ScaleAsNumpy()) if encoded else (),
            zero_point=tuple(int(zero) for zero in _numbers(parameters.ZeroPointAsNumpy())) if encoded else (),
            axis=parameters.QuantizedDimension() if encoded else 0,
        )
    return tensors


def read_operators(content: bytes) -> list[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    """Every operator of a file's one graph in its order: name in the schema, names of its inputs and of its outputs."""
    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    model = schema.Model.GetRootAs(content, 0)
    graph = model.Subgraphs(0)
    tensors = [graph.Tensors(index).Name().decode() for index in range(graph.TensorsLength())]
    operators = []
    for index in range(graph.OperatorsLength()):
        node = graph.Operators(index)
        kind = names[model.OperatorCodes(node.OpcodeIndex()).BuiltinCode()]
        inputs = tuple(tensors[place] for place in node.InputsAsNumpy() if place >= 0)
        operators.append((kind, inputs, tuple(tensors[place] for place in node.OutputsAsNumpy())))
    return operators


def _numbers(array: NDArray[Any]) -> tuple[float, ...]:
    return tuple(array.tolist())
