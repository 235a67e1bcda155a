"""Linears of tokens become Gemms that add their bias, with a Site of their own."""

from __future__ import annotations

import pytest

from tests.compile.passes.conftest import Sketch, kept, operators, site_names


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_is_a_gemm_with_its_bias(bias: bool) -> None:
    sketch = Sketch()
    model = sketch.model(sketch.linear(sketch.site(sketch.input("x", 1, 7, 6), "fc.in"), "fc", 5, bias=bias))
    after, _ = kept(model, "linear_to_gemm")
    assert operators(after) == {"Reshape": 2, "Site": 1, "Gemm": 1}
    gemm = next(node for node in after.graph if node.op_type == "Gemm")
    assert gemm.inputs[0].producer().op_type == "Site"
    assert [value.name for value in gemm.inputs[1:]] == ["fc.weight", "fc.bias"][: 1 + bias]


def test_a_slot_reads_what_it_read() -> None:
    sketch = Sketch()
    after, _ = kept(sketch.model(sketch.slotted(sketch.input("x", 1, 7, 6), "fc", 5)), "linear_to_gemm")
    assert site_names(after) == {"fc.in": 2, "fc.lora_mid": 1}
    assert operators(after)["MatMul"] == 2


def test_a_constant_that_is_no_bias_stays_an_add() -> None:
    sketch = Sketch()
    y = sketch.linear(sketch.input("x", 1, 7, 6), "fc", 5, bias=False)
    model = sketch.model(sketch.value("Add", [y, sketch.noise("positions", 7, 5)], 1, 7, 5))
    assert operators(kept(model, "linear_to_gemm")[0])["Add"] == 1
