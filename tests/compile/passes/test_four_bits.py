"""Weights of 4 bits behind 8-bit activations: the same numbers from the kernels that bytes have."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from quad.compile.passes.integers.dequantized import dequantized
from quad.compile.placement.stored_weights import stored_weights
from quad.runtime.engines.exact_products import with_exact_products
from tests.compile.passes.conftest import Sketch, kept, operators

KERNEL = "MatMulIntegerToFloat"


def nibbles(sketch: Sketch, name: str, shape: tuple[int, ...], axis: int) -> ir.Value:
    """uint4 -> DQ with a scale and a zero point for each channel."""
    draw, count = np.random.default_rng(len(name)), shape[axis]
    kind = ir.DataType.UINT4.numpy()
    constants = [
        sketch.constant(name, draw.integers(0, 16, shape).astype(kind)),
        sketch.constant(f"{name}/scale", draw.uniform(0.01, 0.1, count).astype(np.float32)),
        sketch.constant(f"{name}/zero_point", draw.integers(3, 12, count).astype(kind)),
    ]
    return sketch.value("DequantizeLinear", constants, *shape, axis=axis)


def bytes_of(sketch: Sketch, x: ir.Value) -> ir.Value:
    constants, shape = [sketch.constant("x.s", np.float32(0.04)), sketch.constant("x.z", np.uint8(101))], x.shape.numpy()
    q = sketch.value("QuantizeLinear", [x, *constants], *shape, dtype=ir.DataType.UINT8)
    return sketch.value("DequantizeLinear", [q, *constants], *shape)


def convolution(*, rounded: bool = True) -> ir.Model:
    sketch = Sketch()
    x = sketch.input("x", 1, 4, 6, 6)
    inputs = [bytes_of(sketch, x) if rounded else x, nibbles(sketch, "conv.weight", (5, 4, 3, 3), 0), sketch.noise("conv.bias", 5)]
    return sketch.model(sketch.value("Conv", inputs, 1, 5, 6, 6, pads=[1, 1, 1, 1]))


def linear(op: str = "MatMul") -> ir.Model:
    sketch = Sketch()
    x = bytes_of(sketch, sketch.input("x", 7, 8))
    turned = op == "Gemm"
    shape, attributes = ((6, 8), {"transB": 1}) if turned else ((8, 6), {})
    return sketch.model(sketch.value(op, [x, nibbles(sketch, "fc.weight", shape, 0 if turned else 1)], 7, 6, **attributes))


@pytest.mark.parametrize("model", [convolution(), linear(), linear("Gemm")], ids=["convolution", "MatMul", "Gemm"])
def test_it_is_one_integer_kernel_and_the_file_keeps_4_bits(model: ir.Model) -> None:
    after, _ = kept(model, "integer_conv", "integer_matmul", tolerance=2e-6)
    assert (operators(after)[KERNEL], operators(after)["Cast"]) == (1, 1)
    assert not {"Conv", "MatMul", "Gemm", "DequantizeLinear"} & set(operators(after))
    matrices = [value for value in after.graph.initializers.values() if value.shape.rank() == 2]
    assert {value.dtype for value in matrices} == {ir.DataType.UINT4}


@pytest.mark.parametrize("model", [convolution(), linear(), linear("Gemm")], ids=["convolution", "MatMul", "Gemm"])
def test_its_integers_are_bytes_without_a_zero_point(model: ir.Model) -> None:
    after, _ = kept(model, "widen_weights", tolerance=2e-6)
    layer = next(node for node in after.graph if node.op_type in ("Conv", "MatMul", "Gemm"))
    weight = dequantized(layer.inputs[1], ir.DataType.INT8)
    assert weight is not None
    assert weight.zero is None


def test_behind_float_activations_it_stays() -> None:
    model = convolution(rounded=False)
    for names in (("widen_weights",), ("integer_conv", "integer_matmul")):
        assert operators(kept(model, *names)[0]) == operators(model)


def test_its_integers_are_read_back_from_the_kernel() -> None:
    model = convolution()
    given = model.graph.initializers["conv.weight"].const_value.numpy().astype(np.uint8)
    after, _ = kept(model, "integer_conv", "integer_matmul", tolerance=2e-6)
    np.testing.assert_array_equal(stored_weights(after, {"conv.weight": given.shape})["conv.weight"], given, strict=True)


def test_a_processor_whose_kernels_saturate_keeps_products_with_it() -> None:
    """They have constant weights, which ONNX Runtime makes exact by itself."""
    nodes = [
        helper.make_node("Cast", ["w"], ["bytes"], to=TensorProto.INT8),
        helper.make_node(KERNEL, ["x", "bytes", "s", "t", "z", "v"], ["y"], domain="com.microsoft"),
    ]
    weight = helper.make_tensor("w", TensorProto.UINT4, (2, 2), [1, 2, 3, 4])
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", TensorProto.UINT8, (2, 2))], [], [weight])
    data = helper.make_model(graph).SerializeToString()
    assert with_exact_products(data) == data
