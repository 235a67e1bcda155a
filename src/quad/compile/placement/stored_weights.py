"""The integers of weights, read back out of a placed graph: what was rounded with compensation, only the graph knows.

1. a constant under the weight's own name     as placement stored it, its axes as `quad.permutation` says; packed, as `quad.nibbles`
2. constants that were cut from it            as `quad.part` says
3. constants beside the weight's scale        a convolution as a product of integers, `(kernel x in, out)`, or as two; see `integer_conv`
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from quad.compile.passes import weight_permutation
from quad.compile.passes.edit import constant, is_op
from quad.compile.passes.integers.dequantized import PART
from quad.compile.passes.integers.four_bit_matmul import unpacked
from quad.compile.passes.integers.integer_matmul import KERNEL
from quad.compile.passes.layout.fold_transpose import as_parameter

Shape = tuple[int, ...]
_KERNEL_SCALE = 3  # which of the kernel's inputs is the scale of its weight


def stored_weights(model: ir.Model, shapes: Mapping[str, Shape]) -> dict[str, NDArray[np.integer]]:
    """Name -> integers in the parameter's own axes; those that are not in the graph, or not as integers of that shape, are left out.

    Args:
        model: a placed graph; a chip's binary in a graph has no weights.
        shapes: weight's name -> shape of the parameter `(out, in, *kernel)`.
    """
    constants = model.graph.initializers
    parts = _parts(constants)

    def stored_weight(name: str, shape: Shape) -> NDArray[Any] | None:
        if name in constants:
            return _in_parameter_axes(constants[name], unpacked(constants[name]))
        return _joined(parts[name]) if name in parts else _beside_scale(constants, name, shape)

    stored = {name: _whole_bytes(stored_weight(name, shape)) for name, shape in shapes.items()}
    return {
        name: array
        for name, array in stored.items()
        if array is not None and array.shape == shapes[name] and np.issubdtype(array.dtype, np.integer)
    }


def _whole_bytes(array: NDArray[Any] | None) -> NDArray[Any] | None:
    """Integers of 4 bits in NumPy's smallest."""
    smallest = {ir.DataType.UINT4.numpy(): np.uint8, ir.DataType.INT4.numpy(): np.int8}
    return array.astype(smallest[array.dtype]) if array is not None and array.dtype in smallest else array


def _in_parameter_axes(weight: ir.Value, array: NDArray[Any] | None) -> NDArray[Any] | None:
    permutation = weight_permutation(weight)
    return array if array is None or permutation is None else as_parameter(array, permutation)


def _parts(constants: Mapping[str, ir.Value]) -> dict[str, dict[int, tuple[int, ir.Value]]]:
    """Name of a weight that was cut -> number of the part -> axis, and the part."""
    parts: dict[str, dict[int, tuple[int, ir.Value]]] = {}
    for value in constants.values():
        if PART in value.metadata_props:
            name, index, axis = json.loads(value.metadata_props[PART])
            parts.setdefault(name, {})[index] = axis, value
    return parts


def _joined(parts: Mapping[int, tuple[int, ir.Value]]) -> NDArray[Any] | None:
    arrays = [unpacked(parts[index][1]) for index in sorted(parts)]
    if sorted(parts) != list(range(len(parts))) or any(array is None for array in arrays):
        return None
    axis, first = parts[0]
    return _in_parameter_axes(first, np.concatenate([array for array in arrays if array is not None], axis=axis))


def _before_cast(value: ir.Value | None) -> ir.Value | None:
    """Of a weight of 4 bits, which a kernel reads as bytes, its constant."""
    cast = None if value is None else value.producer()
    return cast.inputs[0] if cast is not None and is_op(cast, "Cast") else value


def _beside_scale(constants: Mapping[str, ir.Value], name: str, shape: Shape) -> NDArray[Any] | None:
    """Of products whose second scale is the weight's: one, or two for the channels before and behind a split concat."""
    scale = constants.get(f"{name}/scale")
    out, kernel = shape[0], shape[2:]
    parts = []
    for node, index in () if scale is None else scale.uses():
        is_kernel = node.op_type == KERNEL and index == _KERNEL_SCALE
        matrix = (
            constant(_before_cast(node.inputs[1])) if is_kernel else constant(node.inputs[0]) if is_op(node, "DequantizeLinear") else None
        )
        if matrix is None or matrix.ndim != 2 or matrix.shape[1] != out or matrix.shape[0] % math.prod(kernel):
            return None
        taps_first = matrix.reshape(*kernel, -1, out)
        parts.append(np.moveaxis(taps_first, (-1, -2), (0, 1)))
    return np.ascontiguousarray(np.concatenate(parts, axis=1)) if parts else None
