"""A tflite model in memory: tensors, operators, and how one is put together. No file format here, see `flatbuffer`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quad.core.encoding import Encoding

Shape = tuple[int, ...]
NO_TENSOR = -1  # an operand that is left out


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """One tensor of a model.

    Args:
        encoding: of its integers; None for floats and for integers that stand for themselves.
        data: of a constant, in C order.
    """

    name: str
    shape: Shape
    dtype: np.dtype[Any]
    encoding: Encoding | None = None
    data: NDArray[Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Operator:
    """One operator.

    Args:
        kind: its name in the schema, e.g. `CONV_2D`.
        inputs, outputs: indices of tensors; `NO_TENSOR` for an operand that is left out.
        options: fields of its options by the schema's names; empty where it has none, or those of its table alone.
        table: name of its options in the schema, e.g. `Conv2DOptions`; empty where it has none.
    """

    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    table: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TfliteModel:
    """A whole model of one graph.

    Args:
        operators: in an order in which they can run.
        inputs, outputs: indices of tensors.
    """

    name: str
    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


class ModelBuilder:
    """Collects tensors and operators; names are made unique, equal constants are shared, encoded ones under one name alone."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.operators: list[Operator] = []
        self._names: dict[str, int] = {}
        self._constants: dict[tuple[Any, ...], int] = {}

    def tensor(self, name: str, shape: Sequence[int], dtype: Any, encoding: Encoding | None = None) -> int:
        """The index of a new tensor that is computed or given."""
        return self._add(Tensor(name=self._unique(name), shape=tuple(shape), dtype=np.dtype(dtype), encoding=encoding))

    def constant(self, name: str, data: NDArray[Any], encoding: Encoding | None = None) -> int:
        """The index of a constant."""
        data = np.ascontiguousarray(data)
        key = (data.dtype.str, data.shape, encoding, encoding and name, sha256(data.data).digest())
        if key not in self._constants:
            tensor = Tensor(name=self._unique(name), shape=data.shape, dtype=data.dtype, encoding=encoding, data=data)
            self._constants[key] = self._add(tensor)
        return self._constants[key]

    def operator(self, kind: str, inputs: Sequence[int], outputs: Sequence[int], table: str = "", **options: Any) -> None:
        """Append an operator."""
        self.operators.append(Operator(kind=kind, inputs=tuple(inputs), outputs=tuple(outputs), table=table, options=options))

    def model(self, name: str, inputs: Sequence[int], outputs: Sequence[int]) -> TfliteModel:
        """All of it."""
        return TfliteModel(
            name=name, tensors=tuple(self.tensors), operators=tuple(self.operators), inputs=tuple(inputs), outputs=tuple(outputs)
        )

    def _add(self, tensor: Tensor) -> int:
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def _unique(self, name: str) -> str:
        count = self._names.get(name, 0)
        self._names[name] = count + 1
        return f"{name}#{count}" if count else name
