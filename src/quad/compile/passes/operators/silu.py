"""x * sigmoid(x) on a picture [1, C, H, W] of certain sizes -> the same on [1, C, H W], with a Reshape on either side.

Qualcomm's HTP compiler makes garbage of it in four dimensions, and says nothing; in three it is right. Behind an Add, which a norm
written with InstanceNormalization ends in, that is so where H <= 8. Behind the one node of GroupNormalization it is so where H > 8 and
either H <= 12 or W <= 8, whatever the channels.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from quad.compile.passes.edit import Writer, is_op, replace, sole_reader, static_shape

LARGEST_FAULTY, LARGEST_FAULTY_HEIGHT = 8, 12


class _FlattenSilu(ir.passes.InPlacePass):
    """Flatten every SiLU of a picture of these rows and columns."""

    def __init__(self, is_faulty: Callable[[int, int], bool]) -> None:
        super().__init__()
        self._is_faulty = is_faulty

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        sigmoids = [node for node in model.graph if self._is_one(node)]
        for node in sigmoids:
            _flatten(node)
        return ir.passes.PassResult(model, bool(sigmoids))

    def ensures(self, model: ir.Model) -> None:
        """None is left in four dimensions."""
        if left := next((node for node in model.graph if self._is_one(node)), None):
            raise ir.passes.PostconditionError(f"{left.name} is still a SiLU in four dimensions")

    def _is_one(self, sigmoid: ir.Node) -> bool:
        shape = static_shape(sigmoid.outputs[0]) if is_op(sigmoid, "Sigmoid") else None
        if shape is None or len(shape) != 4 or not self._is_faulty(*shape[2:]):
            return False
        product = sole_reader(sigmoid.outputs[0])
        return product is not None and is_op(product, "Mul") and any(value is sigmoid.inputs[0] for value in product.inputs)


class FlattenSmallSilu(_FlattenSilu):
    """Flatten every SiLU of a picture at most 8 rows high."""

    def __init__(self) -> None:
        super().__init__(lambda height, _: height <= LARGEST_FAULTY)


class FlattenNormedSilu(_FlattenSilu):
    """Flatten every SiLU of a picture more than 8 rows high that is at most 12 rows high, or at most 8 columns wide."""

    def __init__(self) -> None:
        super().__init__(lambda height, width: height > LARGEST_FAULTY and (height <= LARGEST_FAULTY_HEIGHT or width <= LARGEST_FAULTY))


class FlattenSilu(_FlattenSilu):
    """Flatten every SiLU of a picture."""

    def __init__(self) -> None:
        super().__init__(lambda height, width: True)


def _flatten(sigmoid: ir.Node) -> None:
    product, x = sole_reader(sigmoid.outputs[0]), sigmoid.inputs[0]
    if product is None or x is None:
        return
    batch, channels, height, width = static_shape(x) or (0, 0, 0, 0)
    writer = Writer(product, str(product.outputs[0].name))
    flat = writer.reshape(x, (batch, channels, height * width))
    shape = static_shape(flat) or ()
    y = writer.value("Mul", [flat, writer.value("Sigmoid", [flat], shape)], shape)
    replace(product.outputs[0], writer.reshape(y, (batch, channels, height, width)))
