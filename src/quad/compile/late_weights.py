"""Weights that are dequantized when their layer's input is there, in graphs that run as they are written.

An engine computes what depends on constants alone when it likes: ONNX Runtime puts every DequantizeLinear of a weight first, and holds the
float32 numbers of all layers at once. Here each step of a weight is `s + 0 min(x)`, the same to the bit, x the layer's input; the zero is
that of the layer before it, in the order of the graph, and its own, since keys and values of a prompt have their input from the start.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from quad.compile.passes.edit import Writer, is_op, producer

_LAYERS, _WEIGHT, _SCALE = ("Conv", "Gemm", "MatMul"), 1, 1


def delay_weights(graph: ir.Graph) -> None:
    """Make every constant weight behind a DequantizeLinear wait for the input of the first layer that reads it, in place.

    Args:
        graph: its operators in an order in which they can be computed.
    """
    delayed: set[ir.Node] = set()
    before: ir.Value | None = None
    for node in list(graph):
        dequantize = producer(node.inputs[_WEIGHT], "DequantizeLinear") if is_op(node, *_LAYERS) else None
        x, weight = node.inputs[0], None if dequantize is None else dequantize.inputs[0]
        if dequantize is None or dequantize in delayed or x is None or x.const_value is not None:
            continue
        if weight is None or weight.const_value is None:
            continue
        delayed.add(dequantize)
        scale = dequantize.inputs[_SCALE]
        shape = () if scale is None or scale.shape is None else scale.shape.numpy()
        writer = Writer(dequantize, f"{dequantize.outputs[0].name}/late")
        nothing = writer.value(
            "Mul", [writer.value("ReduceMin", [x], (), keepdims=0), writer.constant("zero", np.zeros((), np.float32))], ()
        )
        before = nothing if before is None else writer.value("Add", [nothing, before], ())
        dequantize.replace_input_with(_SCALE, writer.value("Add", [scale, before], shape))
