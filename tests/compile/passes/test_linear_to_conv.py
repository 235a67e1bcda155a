"""Linears become convolutions that compute the same, their slots untouched, their weights still found by placement."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from quad.compile.passes import run_passes, weight_permutation
from quad.compile.passes.contract import ContractTrial, check_contract
from quad.compile.passes.layout.fold_transpose import as_parameter, as_stored
from tests.compile.passes.conftest import Sketch, kept, operators


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_is_a_convolution_over_its_tokens(bias: bool) -> None:
    sketch = Sketch()
    model = sketch.model(sketch.linear(sketch.site(sketch.input("x", 1, 7, 6), "fc.in"), "fc", 5, bias=bias))
    weight = model.graph.initializers["fc.weight"].const_value.numpy().copy()
    after, _ = kept(model, "linear_to_conv")
    assert operators(after) == {"Site": 1, "Transpose": 2, "Reshape": 2, "Conv": 1}
    stored = after.graph.initializers["fc.weight"]
    assert tuple(stored.shape) == (5, 6, 1, 1)
    assert weight_permutation(stored) == (0, 1, None, None)
    np.testing.assert_array_equal(as_parameter(stored.const_value.numpy(), weight_permutation(stored)), weight.T)


def test_a_slot_is_multiplied_from_the_left_as_it_comes() -> None:
    sketch = Sketch()
    model = sketch.model(sketch.slotted(sketch.input("x", 1, 7, 6), "fc", 5))
    after, found = kept(model, "linear_to_conv")
    assert found.runs == 3
    readers = {value.name: [use.node for use in value.uses()] for value in after.graph.inputs if ".lora_" in value.name}
    assert {name: [node.op_type for node in nodes] for name, nodes in readers.items()} == {"fc.lora_A": ["MatMul"], "fc.lora_B": ["MatMul"]}
    assert all(node.inputs[0].name == name for name, nodes in readers.items() for node in nodes)


def test_what_is_no_token_matrix_stays() -> None:
    sketch = Sketch()
    x, y = sketch.input("x", 1, 2, 7, 6), sketch.input("y", 1, 2, 6, 7)
    shared = sketch.noise("shared", 7, 7)
    first = sketch.value("MatMul", [sketch.value("MatMul", [x, y], 1, 2, 7, 7), shared], 1, 2, 7, 7)
    model = sketch.model(sketch.value("Add", [first, sketch.value("MatMul", [sketch.input("z", 1, 7, 7), shared], 1, 7, 7)], 1, 2, 7, 7))
    assert operators(kept(model, "linear_to_conv")[0]) == {"MatMul": 3, "Add": 1}


def test_a_constant_that_is_no_bias_stays_an_add() -> None:
    sketch = Sketch()
    y = sketch.linear(sketch.input("x", 1, 7, 6), "fc", 5, bias=False)
    model = sketch.model(sketch.value("Add", [y, sketch.noise("positions", 7, 5)], 1, 7, 5))
    assert operators(kept(model, "linear_to_conv")[0])["Add"] == 1


def test_the_tiny_network_keeps_its_contract(tiny: Any, tiny_trial: ContractTrial) -> None:
    after = run_passes(tiny.graph.clone(), ["linear_to_conv"])
    check_contract(tiny.graph, after, tiny_trial, "linear_to_conv")
    assert operators(after)["Conv"] > operators(tiny.graph)["Conv"]


def test_a_stored_array_comes_back() -> None:
    array = np.arange(6.0).reshape(2, 3)
    for permutation in ((1, 0), (0, 1, None, None), (None, 1, None, 0)):
        stored = as_stored(array, permutation)
        assert stored.ndim == len(permutation)
        np.testing.assert_array_equal(as_parameter(stored, permutation), array)
    assert as_stored(array, (1, None, 0)).shape == (3, 1, 2)
