"""A product's constant in the parameter's own axes, `(out, in)` or `(out, in, rows, columns)`, and back as the graph stores it.

| node | stored |
|---|---|
| Conv | `(out, in, rows, columns)`; a linear layer as one has 1 row and 1 column |
| MatMul, the integer kernel | `(in, out)`; of a convolution `(rows x columns x in, out)`: its taps side by side |
| Gemm | as MatMul, or turned around where it says `transB` |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from quad.compile.passes.edit import is_op
from quad.core.slots import Slot

_TAPS_FIRST, _TAPS_LAST = (2, 3, 1, 0), (3, 2, 0, 1)
Array = NDArray[Any]


@dataclass(frozen=True)
class WeightLayout:
    """How the constant of one product of a slot's layer lies.

    Args:
        turned: a Gemm that reads it `(out, in)`.
    """

    slot: Slot
    convolution: bool
    turned: bool = False

    @staticmethod
    def of(node: ir.Node, slot: Slot) -> WeightLayout:
        """The layout that a node reads."""
        turned = is_op(node, "Gemm") and "transB" in node.attributes and bool(node.attributes["transB"].as_int())
        return WeightLayout(slot, is_op(node, "Conv"), turned)

    @property
    def channel_axis(self) -> int:
        """The stored axis of the output channels."""
        return 0 if self.convolution or self.turned else 1

    def parameter(self, stored: Array) -> Array | None:
        """In the parameter's axes; None where it cannot be of this layer."""
        conv, (out, rows, columns) = self.slot.kind == "conv", (self.slot.out_features, *self.slot.kernel)
        if self.convolution:
            fits = stored.ndim == 4 and stored.shape[0] == out and stored.shape[2:] == (rows, columns)
            return (stored if conv else stored[..., 0, 0]) if fits else None
        matrix = stored.T if self.turned else stored
        taps = rows * columns if conv else 1
        if matrix.ndim != 2 or matrix.shape[1] != out or matrix.shape[0] % taps:
            return None
        return matrix.reshape(rows, columns, -1, out).transpose(_TAPS_LAST) if conv else matrix.T

    def stored(self, parameter: Array) -> Array:
        """As the graph stores it, contiguous."""
        if self.convolution:
            array = parameter if parameter.ndim == 4 else parameter[..., None, None]
        elif parameter.ndim == 4:
            array = parameter.transpose(_TAPS_FIRST).reshape(-1, parameter.shape[0])
        else:
            array = parameter.T
        return np.ascontiguousarray(array.T if self.turned else array)
