"""A constant of a graph that is made when it is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray


def lazy_tensor(make: Callable[[], NDArray[Any]], dtype: ir.DataType, shape: tuple[int, ...], name: str | None) -> ir.LazyTensor:
    """A constant that is made when it is read, each time anew."""
    return ir.LazyTensor(lambda: ir.tensor(make(), name=name), dtype=dtype, shape=ir.Shape(shape), cache=False, name=name)
