"""The table: what each ONNX operator becomes. An operator that is not here is refused by its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir

from quad.compile.litert import convolutions, elementwise, products, shapes
from quad.compile.litert.lowering import Lowering
from quad.compile.litert.tflite_model import TfliteModel

RULES: Mapping[str, Callable[[Lowering, ir.Node], None]] = {
    "Add": elementwise.broadcast,
    "Cast": elementwise.cast,
    "Concat": shapes.concat,
    "Conv": convolutions.convolution,
    "Equal": elementwise.broadcast,
    "Flatten": shapes.reshape,
    "Gather": shapes.gather,
    "Gelu": elementwise.gelu,
    "Gemm": products.gemm,
    "Identity": shapes.identity,
    "MatMul": products.matmul,
    "Mul": elementwise.broadcast,
    "Pad": shapes.pad,
    "Pow": elementwise.power,
    "ReduceMean": elementwise.mean,
    "Relu": elementwise.unary,
    "Reshape": shapes.reshape,
    "Resize": shapes.resize,
    "Sigmoid": elementwise.unary,
    "Slice": shapes.slices,
    "Softmax": elementwise.softmax,
    "Split": shapes.split,
    "Squeeze": shapes.reshape,
    "Sub": elementwise.broadcast,
    "Tanh": elementwise.unary,
    "Transpose": shapes.transpose,
    "Unsqueeze": shapes.reshape,
    "Where": elementwise.broadcast,
}


def lower(model: ir.Model) -> TfliteModel:
    """A placed graph as a tflite model.

    Raises:
        UnsupportedError: it has an operator without a rule, named.
    """
    return Lowering(model.graph).run(RULES)
