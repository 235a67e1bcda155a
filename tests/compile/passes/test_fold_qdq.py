"""Q that undoes a DQ goes, to the bit; any other Q stays."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from tests.compile.passes.conftest import Sketch, kept, operators

SCALE, ZERO = np.float32(0.05), np.uint8(120)


def quantized_twice(*moves: str, scale: np.float32 = SCALE, zero: np.generic = ZERO) -> ir.Model:
    """x -> Q -> DQ -> moves -> Q -> DQ, the second pair with its own constants."""
    sketch = Sketch()
    x = sketch.input("x", 1, 4, 6)
    first = [sketch.constant("s0", SCALE), sketch.constant("z0", ZERO)]
    second = [sketch.constant("s1", scale), sketch.constant("z1", zero)]
    x = sketch.value("QuantizeLinear", [x, *first], 1, 4, 6, dtype=ir.DataType.UINT8)
    x = sketch.value("DequantizeLinear", [x, *first], 1, 4, 6)
    for move in moves:
        if move == "Transpose":
            x = sketch.transpose(x, 0, 2, 1)
        elif move == "Reshape":
            x = sketch.reshape(x, 1, 24, 1)
        else:
            x = sketch.value(move, [x], *x.shape.numpy())
    shape = x.shape.numpy()
    x = sketch.value("QuantizeLinear", [x, *second], *shape, dtype=ir.DataType.from_numpy(np.dtype(zero.dtype)))
    return sketch.model(sketch.value("DequantizeLinear", [x, *second], *shape))


@pytest.mark.parametrize("moves", [(), ("Transpose",), ("Transpose", "Reshape")])
def test_the_second_pair_of_the_same_encoding_goes_to_the_bit(moves: tuple[str, ...]) -> None:
    after, found = kept(quantized_twice(*moves), "fold_qdq", tolerance=0.0)
    assert found.errors == {"": 0.0}
    assert [node.op_type for node in after.graph] == ["QuantizeLinear", *moves, "DequantizeLinear"]


@pytest.mark.parametrize(
    "model",
    [
        quantized_twice(scale=np.float32(0.06)),
        quantized_twice(zero=np.uint8(121)),
        quantized_twice(zero=np.int8(120)),
        quantized_twice("Relu"),
    ],
    ids=["scale", "zero point", "type", "an operator between"],
)
def test_any_other_pair_stays(model: ir.Model) -> None:
    assert operators(kept(model, "fold_qdq", tolerance=0.0)[0]) == operators(model)


def test_a_pair_that_leaves_out_one_zero_point_stays() -> None:
    model = quantized_twice(zero=np.uint8(0))
    last = [node for node in model.graph if node.op_type in ("QuantizeLinear", "DequantizeLinear")][2:]
    for node in last:
        node.resize_inputs(2)
    assert operators(kept(model, "fold_qdq", tolerance=0.0)[0]) == operators(model)


def test_a_first_pair_with_other_readers_stays_for_them() -> None:
    model = quantized_twice("Transpose")
    first = next(node for node in model.graph if node.op_type == "DequantizeLinear")
    model.graph.append(ir.node("Relu", [first.outputs[0]]))
    model.graph[-1].outputs[0].name, model.graph[-1].outputs[0].type = "other", ir.TensorType(ir.DataType.FLOAT)
    model.graph.outputs.append(model.graph[-1].outputs[0])
    after, _ = kept(model, "fold_qdq", tolerance=0.0)
    assert operators(after) == {"QuantizeLinear": 1, "DequantizeLinear": 2, "Transpose": 1, "Relu": 1}
