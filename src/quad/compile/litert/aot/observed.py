"""A `.tflite` file whose values between operators can be looked at: by the interpreter on the CPU, and as outputs of an altered file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from numpy.typing import NDArray

from quad.core.errors import BackendError, mismatch
from quad.runtime.engines.engine import first_line

_INTEGERS = (schema.TensorType.INT8, schema.TensorType.INT16)


class ObservedModel:
    """A file in LiteRT's interpreter, with its own kernels and every tensor kept.

    Args:
        content: of the file.
        name: for errors.

    Raises:
        BackendError: the interpreter does not take it.
    """

    def __init__(self, content: bytes, name: str) -> None:
        self.content = content
        try:
            self._interpreter = Interpreter(
                model_content=content, num_threads=1, experimental_preserve_all_tensors=True,
                experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
            )  # fmt: skip
            self._interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            hint = "report it with the model's name"
            raise BackendError(mismatch(f"{name} on LiteRT", "a graph that its interpreter takes", first_line(error), hint)) from error
        details = {detail["index"]: detail for detail in self._interpreter.get_tensor_details()}
        self._encodings = {place: detail["quantization"] for place, detail in details.items()}
        self.names = {place: detail["name"] for place, detail in details.items()}
        self._inputs = {detail["name"]: detail["index"] for detail in self._interpreter.get_input_details()}
        self.outputs = [detail["index"] for detail in self._interpreter.get_output_details()]

    def run(self, feed: Mapping[str, NDArray[Any]], tensors: Sequence[int]) -> list[NDArray[Any]]:
        """Values of these tensors, as the file has them, for inputs as the file has them."""
        for name, place in self._inputs.items():
            self._interpreter.set_tensor(place, np.ascontiguousarray(feed[name]))
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(place) for place in tensors]

    def real(self, place: int, values: NDArray[Any]) -> NDArray[np.float64]:
        """A tensor's values as real numbers."""
        scale, zero = self._encodings[place]
        return (values.astype(np.float64) - zero) * scale if scale else values.astype(np.float64)


def computed_tensors(content: bytes) -> list[int]:
    """Encoded integers that an operator computes, in the order of the graph; its output comes last."""
    graph = schema.ModelT.InitFromPackedBuf(content, 0).subgraphs[0]
    written = [int(place) for node in graph.operators for place in node.outputs]
    inner = [place for place in written if place not in graph.outputs and _is_encoded(graph.tensors[place])]
    return [*inner, *map(int, graph.outputs)]


def has_byte_activations(content: bytes) -> bool:
    """Does an operator write 8-bit integers."""
    graph = schema.ModelT.InitFromPackedBuf(content, 0).subgraphs[0]
    written = [graph.tensors[place] for node in graph.operators for place in node.outputs]
    return any(tensor.type == schema.TensorType.INT8 for tensor in written)


def _is_encoded(tensor: schema.TensorT) -> bool:
    encoding = tensor.quantization
    return tensor.type in _INTEGERS and encoding is not None and encoding.scale is not None and len(encoding.scale) == 1


def observed_name(place: int) -> str:
    """Of an output in an altered file."""
    return f"observed_{place}"


def with_outputs(content: bytes, tensors: Sequence[int]) -> bytes:
    """The file with these tensors as its outputs too, under plain names: compilers spell others anew."""
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    # An output that is none any more would end nowhere, and a compiler then makes one of it again.
    model.subgraphs[0].outputs = [*tensors, *(place for place in model.subgraphs[0].outputs if place not in tensors)]
    for place in tensors:
        model.subgraphs[0].tensors[place].name = observed_name(place)
    model.signatureDefs = None
    builder = flatbuffers.Builder(len(content) + (1 << 16))
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())
