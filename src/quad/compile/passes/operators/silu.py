"""x * sigmoid(x) on a small picture [1, C, H <= 8, W] -> the same on [1, C, H W], with a Reshape on either side.

Qualcomm's HTP compiler makes garbage of Add -> x * sigmoid(x) in four dimensions where H <= 8, and says nothing; in three it is right.
"""

from __future__ import annotations

import onnx_ir as ir

from quad.compile.passes.edit import Writer, is_op, replace, sole_reader, static_shape

LARGEST_FAULTY_HEIGHT = 8


class FlattenSmallSilu(ir.passes.InPlacePass):
    """Flatten every SiLU of a picture at most 8 rows high."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        sigmoids = [node for node in model.graph if _is_small(node)]
        for node in sigmoids:
            _flatten(node)
        return ir.passes.PassResult(model, bool(sigmoids))

    def ensures(self, model: ir.Model) -> None:
        """None is left in four dimensions."""
        if left := next((node for node in model.graph if _is_small(node)), None):
            raise ir.passes.PostconditionError(f"{left.name} is still a SiLU in four dimensions")


def _is_small(sigmoid: ir.Node) -> bool:
    shape = static_shape(sigmoid.outputs[0]) if is_op(sigmoid, "Sigmoid") else None
    if shape is None or len(shape) != 4 or shape[2] > LARGEST_FAULTY_HEIGHT:
        return False
    product = sole_reader(sigmoid.outputs[0])
    return product is not None and is_op(product, "Mul") and any(value is sigmoid.inputs[0] for value in product.inputs)


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
