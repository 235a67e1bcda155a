"""A Gemm whose matrix a slot brings becomes a matmul; a layer's stays."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from quad.compile.passes import run_passes
from quad.compile.passes.slots.dynamic_gemm import DynamicGemm
from tests.compile.passes.conftest import Sketch, kept, operators


def gemm(*, a: bool = False, b: bool = False, bias: str = "", slot: bool = True, **factors: float) -> ir.Model:
    sketch = Sketch()
    x = sketch.input("x", *((6, 4) if a else (4, 6)))
    shape = (5, 6) if b else (6, 5)
    weight = sketch.input("fc.lora_A", *shape) if slot else sketch.noise("fc.weight", *shape)
    operands: list[ir.Value | None] = [x, weight]
    if bias == "constant":
        operands.append(sketch.noise("fc.bias", 5))
    if bias == "computed":
        operands.append(sketch.value("Relu", [sketch.input("y", 4, 5)], 4, 5))
    if bias == "left out":
        operands.append(None)
    return sketch.model(sketch.value("Gemm", operands, 4, 5, transA=int(a), transB=int(b), **factors))


@pytest.mark.parametrize("bias", ["", "constant", "computed", "left out"])
@pytest.mark.parametrize(("a", "b"), [(False, False), (False, True), (True, False), (True, True)])
def test_a_slot_is_an_operand_of_a_matmul(a: bool, b: bool, bias: str) -> None:
    after, _ = kept(gemm(a=a, b=b, bias=bias), "dynamic_gemm")
    found = operators(after)
    assert (found["Gemm"], found["MatMul"], found["Transpose"], found["Add"]) == (0, 1, a + b, bias in ("constant", "computed"))


def test_a_layer_stays_a_gemm() -> None:
    after, _ = kept(gemm(slot=False, b=True, bias="constant"), "dynamic_gemm")
    assert operators(after) == {"Gemm": 1}


def test_factors_of_one_are_none() -> None:
    assert operators(kept(gemm(alpha=1.0, beta=1.0), "dynamic_gemm")[0])["MatMul"] == 1


@pytest.mark.parametrize("factor", ["alpha", "beta"])
def test_factors_are_refused(factor: str) -> None:
    with pytest.raises(ir.passes.PassError, match="n0: a Gemm with factors"):
        run_passes(gemm(bias="constant", **{factor: 0.5}), ["dynamic_gemm"])


def test_its_promise_is_checked() -> None:
    with pytest.raises(ir.passes.PostconditionError, match="n0 still multiplies two computed values"):
        DynamicGemm().ensures(gemm())
