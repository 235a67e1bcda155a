"""Weights read back out of a `.tflite` file: what was rounded with compensation, only the file knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

Shape = tuple[int, ...]
_COPY = ("int8", "")  # of a constant as placement names it; the two halves of a weight of 16 bits have other names


def stored_weights(content: bytes, shapes: Mapping[str, Shape]) -> dict[str, NDArray[np.float32]]:
    """Name -> values in the parameter's own axes; those that the file has not as 8-bit integers of that shape are left out.

    Args:
        content: of the file.
        shapes: weight's name -> shape of the parameter `(out, in, *kernel)`.
    """
    model = schema.Model.GetRootAs(content, 0)
    graph = model.Subgraphs(0)
    stored: dict[str, NDArray[np.float32]] = {}
    for index in range(graph.TensorsLength()):
        tensor = graph.Tensors(index)
        name, _, copy = tensor.Name().decode().partition("/")
        is_weight = name in shapes and tensor.Type() == schema.TensorType.INT8 and copy.partition("/")[0] in _COPY
        if not is_weight or name in stored:
            continue
        parameters = tensor.Quantization()
        integers = model.Buffers(tensor.Buffer()).DataAsNumpy().view(np.int8).reshape(tensor.ShapeAsNumpy())
        scale = parameters.ScaleAsNumpy().reshape(-1, *[1] * (integers.ndim - 1))
        values = _in_parameter_axes(integers.astype(np.float32) * scale, shapes[name])
        if values is not None and parameters.QuantizedDimension() == 0:
            stored[name] = values
    return stored


def _in_parameter_axes(values: NDArray[Any], shape: Shape) -> NDArray[Any] | None:
    """Of a convolution, whose file has its channels last, or of a linear layer; None where it is neither."""
    turned = np.moveaxis(values, -1, 1) if values.ndim > 2 else values
    return np.ascontiguousarray(turned) if turned.shape == shape else None
