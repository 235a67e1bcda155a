"""Products with weights of 4 bits that stay 4 bits up to the kernel: the same layer, and its integers come back."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from quad.compile.passes import finish, passes_after, run_passes
from quad.compile.passes.contract import ContractTrial, check_contract
from quad.compile.passes.integers.four_bit_matmul import KERNEL, FourBitMatMul
from quad.compile.placement.stored_weights import stored_weights
from quad.compile.targets import load_target
from tests.compile.passes.conftest import Sketch, feeds, operators
from tests.compile.passes.test_four_bits import bytes_of, nibbles

SIZES = {"one block": 16, "three blocks, an odd count": 48, "a long block": 256, "two blocks": 512}


def layer(inputs: int, *, op: str = "MatMul", bias: bool = True, rounded: bool = False, readers: int = 1) -> ir.Model:
    sketch = Sketch()
    x = sketch.input("x", 7, inputs)
    turned = op == "Gemm"
    weight = nibbles(sketch, "fc.weight", (6, inputs) if turned else (inputs, 6), 0 if turned else 1)
    terms = [bytes_of(sketch, x) if rounded else x, weight]
    if turned:
        return sketch.model(sketch.value(op, [*terms, *([sketch.noise("fc.bias", 6)] if bias else [])], 7, 6, transB=1))
    outputs = [sketch.value(op, terms, 7, 6) for _ in range(readers)]
    return sketch.model(*[sketch.value("Add", [y, sketch.noise("fc.bias", 6)], 7, 6) if bias else y for y in outputs])


@pytest.mark.parametrize("inputs", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize(("op", "bias"), [("MatMul", True), ("MatMul", False), ("Gemm", True), ("Gemm", False)])
def test_one_kernel_has_layer_and_bias_and_the_file_its_integers(inputs: int, op: str, bias: bool) -> None:
    model = layer(inputs, op=op, bias=bias)
    given = model.graph.initializers["fc.weight"].const_value.numpy().astype(np.uint8)
    after = finish(FourBitMatMul()(model.clone()).model)
    check_contract(model, after, ContractTrial(inputs=feeds(model), tolerance=1e-5), KERNEL)
    assert not set(operators(after)) - {KERNEL, "Expand"}
    weight = after.graph.initializers["fc.weight"]
    assert weight.const_value.nbytes == inputs * 6 // 2
    np.testing.assert_array_equal(stored_weights(after, {"fc.weight": given.shape})["fc.weight"], given, strict=True)


def test_halves_come_back_as_one_weight() -> None:
    sketch = Sketch()
    product = sketch.value("MatMul", [sketch.input("x", 7, 32), nibbles(sketch, "fc.weight", (32, 6), 1)], 7, 6)
    layer = sketch.value("Add", [product, sketch.noise("fc.bias", 6)], 7, 6)
    model = sketch.model(*sketch.values("Split", [layer, sketch.constant("sizes", np.array([3, 3]))], [(7, 3), (7, 3)], axis=1))
    given = model.graph.initializers["fc.weight"].const_value.numpy().astype(np.uint8)
    after = finish(run_passes(model.clone(), ("split_halves", "four_bit_matmul")))
    check_contract(model, after, ContractTrial(inputs=feeds(model), tolerance=1e-5), KERNEL)
    assert operators(after) == {KERNEL: 2, "Expand": 4}
    np.testing.assert_array_equal(stored_weights(after, {"fc.weight": (32, 6)})["fc.weight"], given, strict=True)


@pytest.mark.parametrize(
    "model",
    [layer(24), layer(16, rounded=True), layer(16, readers=2)],
    ids=["no whole blocks", "an input of 8 bits, for which bytes are faster", "a weight that two layers read"],
)
def test_others_stay(model: ir.Model) -> None:
    assert not FourBitMatMul()(model).modified


def test_a_layer_of_bytes_keeps_its_kernel() -> None:
    model = layer(16, rounded=True)
    after = run_passes(model.clone(), passes_after(load_target("cpu").passes))
    assert operators(after)["MatMulIntegerToFloat"] == 1
    assert KERNEL not in operators(after)
