"""Arithmetic with constants: what can go goes, what only looks alike stays."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from quad.compile.passes import run_passes
from quad.compile.passes.contract import check_contract
from quad.compile.passes.operators.arithmetic import PlainArithmetic
from tests.compile.passes.conftest import Sketch, kept, operators


def by_constant(op: str, factor: Any) -> ir.Model:
    """relu(x) op factor: a graph's input itself is not renamed."""
    sketch = Sketch()
    shape = np.broadcast_shapes((1, 4, 3), np.shape(factor))
    x = sketch.value("Relu", [sketch.input("x", 1, 4, 3)], 1, 4, 3)
    return sketch.model(sketch.value(op, [x, sketch.constant("factor", np.asarray(factor, np.float32))], *shape))


@pytest.mark.parametrize("factor", [3.0, [0.5, -7.0, 1e3]], ids=["one", "each"])
def test_a_division_is_a_product(factor: Any) -> None:
    after, _ = kept(by_constant("Div", factor), "plain_arithmetic")
    assert operators(after) == {"Relu": 1, "Mul": 1}


@pytest.mark.parametrize("op", ["Mul", "Div"])
@pytest.mark.parametrize("factor", [1.0, [1.0, 1.0, 1.0]], ids=["one", "each"])
def test_one_is_no_factor(op: str, factor: Any) -> None:
    assert operators(kept(by_constant(op, factor), "plain_arithmetic")[0]) == {"Relu": 1}


def test_ones_that_spread_a_value_stay() -> None:
    after, _ = kept(by_constant("Mul", np.ones((2, 4, 3))), "plain_arithmetic")
    assert operators(after) == {"Relu": 1, "Mul": 1}


def test_other_factors_stay() -> None:
    assert operators(kept(by_constant("Mul", [1.0, 1.0, 0.999]), "plain_arithmetic")[0]) == {"Relu": 1, "Mul": 1}


def test_a_division_by_a_computed_value_stays() -> None:
    sketch = Sketch()
    x = sketch.input("x", 1, 4)
    after, _ = kept(sketch.model(sketch.value("Div", [x, sketch.value("Exp", [x], 1, 4)], 1, 4)), "plain_arithmetic")
    assert operators(after) == {"Exp": 1, "Div": 1}


def test_integers_are_divided_as_they_were() -> None:
    """7 / 2 is 3; an integer's inverse would be 0."""
    sketch = Sketch()
    x = sketch.input("x", 4, dtype=ir.DataType.INT64)
    model = sketch.model(sketch.value("Div", [x, sketch.constant("two", np.array(2))], 4, dtype=ir.DataType.INT64))
    assert operators(run_passes(model, ["plain_arithmetic"])) == {"Div": 1}


@pytest.mark.parametrize("zeros", [True, False])
def test_a_bias_of_zeros_is_none(zeros: bool) -> None:
    sketch = Sketch()
    x = sketch.input("x", 1, 3, 5, 5)
    bias = sketch.constant("bias", np.zeros(2, np.float32)) if zeros else sketch.noise("bias", 2)
    after, _ = kept(sketch.model(sketch.value("Conv", [x, sketch.noise("w", 2, 3, 1, 1), bias], 1, 2, 5, 5)), "plain_arithmetic")
    assert [len(node.inputs) for node in after.graph] == [2 if zeros else 3]


def test_its_promise_is_checked() -> None:
    with pytest.raises(ir.passes.PostconditionError, match="n1 still divides by a constant"):
        PlainArithmetic().ensures(by_constant("Div", 3.0))


def test_the_tiny_network_keeps_its_contract(tiny: Any, tiny_trial: Any) -> None:
    after = run_passes(tiny.graph.clone(), ["plain_arithmetic"])
    check_contract(tiny.graph, after, tiny_trial, "plain_arithmetic")
    assert operators(after)["Div"] < operators(tiny.graph)["Div"]
