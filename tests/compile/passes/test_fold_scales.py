"""A factor moves into scales and biases: integers stay, outputs agree, every slot still matters."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from tests.compile.passes.conftest import Sketch, kept, operators

HEADS, TOKENS, WIDTH = 2, 7, 8


def query(*, factor: float = 0.125, integer_slots: bool = True, residual: bool = False, divided: bool = False) -> ir.Model:
    """q = heads of (x W + b + (x A^T) B^T), times the factor, as placement leaves it."""
    sketch = Sketch()
    x = sketch.input("x", 1, TOKENS, 6)
    generator = np.random.default_rng(3)
    weight = sketch.constant("fc.weight", generator.integers(-127, 127, (6, WIDTH)).astype(np.int8))
    scale = sketch.constant("fc.weight/scale", generator.uniform(0.01, 0.02, WIDTH).astype(np.float32))
    zero = sketch.constant("fc.weight/zero", np.zeros(WIDTH, np.int8))
    y = sketch.value("MatMul", [x, sketch.value("DequantizeLinear", [weight, scale, zero], 6, WIDTH, axis=1)], 1, TOKENS, WIDTH)
    y = sketch.value("Add", [y, sketch.noise("fc.bias", WIDTH)], 1, TOKENS, WIDTH)
    a, b = (_slot(sketch, name, shape, integer_slots) for name, shape in (("fc.lora_A", (2, 6)), ("fc.lora_B", (WIDTH, 2))))
    mid = sketch.value("MatMul", [x, sketch.transpose(a, 1, 0)], 1, TOKENS, 2)
    y = sketch.value("Add", [y, sketch.value("MatMul", [mid, sketch.transpose(b, 1, 0)], 1, TOKENS, WIDTH)], 1, TOKENS, WIDTH)
    if residual:
        y = sketch.value("Add", [y, sketch.input("skip", 1, TOKENS, WIDTH)], 1, TOKENS, WIDTH)
    heads = sketch.transpose(sketch.reshape(y, 1, TOKENS, HEADS, WIDTH // HEADS), 0, 2, 1, 3)
    number = sketch.constant("factor", np.array(1 / factor if divided else factor, np.float32))
    return sketch.model(sketch.value("Div" if divided else "Mul", [heads, number], 1, HEADS, TOKENS, WIDTH // HEADS))


def _slot(sketch: Sketch, name: str, shape: tuple[int, int], integers: bool) -> ir.Value:
    if not integers:
        return sketch.input(name, *shape)
    given = sketch.input(name, *shape, dtype=ir.DataType.INT16)
    constants = [sketch.constant(f"{name}/scale", np.float32(1e-5)), sketch.constant(f"{name}/zero", np.int16(0))]
    return sketch.value("DequantizeLinear", [given, *constants], *shape)


@pytest.mark.parametrize("divided", [True, False])
def test_a_power_of_two_is_folded_to_the_bit(divided: bool) -> None:
    model = query(divided=divided)
    after, found = kept(model, "fold_scales", tolerance=1e-7)
    assert operators(after)["Mul"] + operators(after)["Div"] == 0
    assert found.errors == {"noise": 0.0}
    before, now = (one.graph.initializers["fc.weight"].const_value.numpy() for one in (model, after))
    np.testing.assert_array_equal(now, before)
    assert [value.name for value in after.graph.inputs] == ["x", "fc.lora_A", "fc.lora_B"]


def test_any_other_factor_is_folded_to_float_rounding() -> None:
    after, found = kept(query(factor=1 / np.sqrt(40)), "fold_scales", tolerance=1e-6)
    assert operators(after)["Mul"] == 0
    assert 0 < found.errors["noise"] < 1e-6


@pytest.mark.parametrize(
    "model", [query(integer_slots=False), query(residual=True)], ids=["a float slot has no scale", "a residual has no scale"]
)
def test_a_sum_with_a_branch_that_takes_no_factor_keeps_its_product(model: ir.Model) -> None:
    assert operators(kept(model, "fold_scales")[0]) == operators(model)


def test_a_factor_that_adds_an_axis_stays() -> None:
    sketch = Sketch()
    y = sketch.value("MatMul", [sketch.input("x", TOKENS, 6), sketch.noise("w", 6, WIDTH)], TOKENS, WIDTH)
    factor = sketch.constant("factor", np.full((1, 1, 1), 0.5, np.float32))
    assert operators(kept(sketch.model(sketch.value("Mul", [y, factor], 1, TOKENS, WIDTH)), "fold_scales")[0])["Mul"] == 1


def test_a_weight_that_others_read_too_keeps_its_scale() -> None:
    model = query()
    dequantize = next(node for node in model.graph if node.inputs[0].name == "fc.weight")
    extra = ir.node("ReduceSum", [dequantize.outputs[0]], attributes={"keepdims": 0})
    extra.outputs[0].name, extra.outputs[0].type = "total", ir.TensorType(ir.DataType.FLOAT)
    model.graph.append(extra)
    model.graph.outputs.append(extra.outputs[0])
    assert operators(kept(model, "fold_scales")[0])["Mul"] == 1


def test_the_scale_of_an_activation_is_no_place_for_a_factor() -> None:
    sketch = Sketch()
    q, k = sketch.input("q", 1, TOKENS, WIDTH), sketch.input("k", 1, WIDTH, TOKENS)
    constants = [sketch.constant("s", np.float32(0.05)), sketch.constant("z", np.uint8(128))]
    q, k = (sketch.value("DequantizeLinear", [sketch.value("QuantizeLinear", [x, *constants], *x.shape.numpy(), dtype=ir.DataType.UINT8),
                                              *constants], *x.shape.numpy()) for x in (q, k))  # fmt: skip
    scores = sketch.value("MatMul", [q, k], 1, TOKENS, TOKENS)
    model = sketch.model(sketch.value("Mul", [scores, sketch.constant("factor", np.float32(0.5))], 1, TOKENS, TOKENS))
    assert operators(kept(model, "fold_scales")[0])["Mul"] == 1
