"""SiLU flattened where it is small, GELU composed however it was written."""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from quad.compile.passes import run_passes
from quad.compile.passes.contract import ContractTrial, check_contract
from tests.compile.passes.conftest import Sketch, kept, operators


def silu(height: int, width: int = 5, *, gate: bool = False) -> ir.Model:
    sketch = Sketch()
    shape = (1, 3, height, width)
    x = sketch.input("x", *shape)
    other = sketch.input("other", *shape) if gate else x
    return sketch.model(sketch.value("Mul", [other, sketch.value("Sigmoid", [x], *shape)], *shape))


def test_a_small_silu_is_flat() -> None:
    after, _ = kept(silu(8), "flatten_small_silu")
    assert [node.op_type for node in after.graph] == ["Reshape", "Sigmoid", "Mul", "Reshape"]
    assert {tuple(node.outputs[0].shape) for node in after.graph if node.op_type in ("Sigmoid", "Mul")} == {(1, 3, 40)}


@pytest.mark.parametrize("model", [silu(9), silu(4, gate=True)])
def test_a_large_one_and_a_gate_stay(model: ir.Model) -> None:
    assert operators(kept(model, "flatten_small_silu")[0]) == {"Sigmoid": 1, "Mul": 1}


@pytest.mark.parametrize(
    ("height", "width", "is_flat"), [(8, 5, False), (9, 5, True), (64, 8, True), (12, 64, True), (13, 9, False), (8, 24, False)]
)
def test_a_silu_of_a_size_that_is_faulty_behind_a_norm_is_flat(height: int, width: int, is_flat: bool) -> None:
    after, _ = kept(silu(height, width), "flatten_normed_silu")
    assert operators(after).get("Reshape", 0) == 2 * is_flat


def gelu(form: str, *, root: float = sqrt(2)) -> ir.Model:
    sketch = Sketch()
    x = sketch.input("x", 1, 7, 6)
    half, one = sketch.constant("half", np.array(0.5, np.float32)), sketch.constant("one", np.array(1, np.float32))
    divisor, factor = sketch.constant("root", np.array(root, np.float32)), sketch.constant("inverse", np.array(1 / root, np.float32))
    scaled = sketch.value("Mul", [factor, x], 1, 7, 6) if form == "by the inverse" else sketch.value("Div", [x, divisor], 1, 7, 6)
    bracket = sketch.value("Add", [sketch.value("Erf", [scaled], 1, 7, 6), one], 1, 7, 6)
    if form == "half of x":
        return sketch.model(sketch.value("Mul", [sketch.value("Mul", [x, half], 1, 7, 6), bracket], 1, 7, 6))
    factors = (half, x) if form == "half first" else (x, half)
    return sketch.model(sketch.value("Mul", [sketch.value("Mul", [bracket, factors[0]], 1, 7, 6), factors[1]], 1, 7, 6))


@pytest.mark.parametrize("form", ["by the inverse", "half of x", "half first", "x first"])
def test_a_gelu_by_erf_is_one_node(form: str) -> None:
    after, _ = kept(gelu(form), "fuse_gelu")
    assert operators(after) == {"Gelu": 1}


def test_another_function_of_erf_stays() -> None:
    assert operators(kept(gelu("x first", root=1.5), "fuse_gelu")[0])["Erf"] == 1


def test_the_tiny_network_keeps_its_contract(tiny: Any, tiny_trial: ContractTrial) -> None:
    after = run_passes(tiny.graph.clone(), ["flatten_small_silu", "fuse_gelu"])
    check_contract(tiny.graph, after, tiny_trial, "flatten_small_silu")
    assert operators(after)["Reshape"] > operators(tiny.graph)["Reshape"]
