"""Transposes cancel where they meet and nowhere else; no rule changes a number."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from quad.compile.passes import run_passes
from quad.compile.passes.contract import ContractTrial, check_contract
from quad.compile.passes.layout.axes import inverse, reshape_first
from tests.compile.passes.conftest import Sketch, kept, operators


@st.composite
def turned_and_reshaped(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    perm = tuple(draw(st.permutations(range(len(shape)))))
    turned = [shape[k] for k in perm]
    while len(turned) > 1 and draw(st.booleans()):  # join two neighbours
        k = draw(st.integers(0, len(turned) - 2))
        turned[k : k + 2] = [turned[k] * turned[k + 1]]
    for k in reversed(range(len(turned))):  # split some
        divisor = draw(st.sampled_from([n for n in range(1, turned[k] + 1) if turned[k] % n == 0]))
        if draw(st.booleans()):
            turned[k : k + 1] = [divisor, turned[k] // divisor]
    return shape, perm, tuple(turned)


@given(turned_and_reshaped())
def test_reshape_and_transpose_change_places_without_moving_a_number(
    case: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]],
) -> None:
    shape, perm, reshaped = case
    x = np.arange(prod(shape)).reshape(shape)
    found = reshape_first(x.transpose(perm).shape, reshaped, perm)
    if found is not None:
        np.testing.assert_array_equal(x.reshape(found[0]).transpose(found[1]), x.transpose(perm).reshape(reshaped))


def test_places_change_where_they_can_and_only_there() -> None:
    tokens_of_picture = reshape_first((1, 4, 5, 3), (1, 20, 3), (0, 2, 3, 1))
    assert tokens_of_picture == ((1, 3, 20), (0, 2, 1))
    heads_of_tokens = reshape_first((1, 7, 6), (1, 7, 2, 3), (0, 2, 1))
    assert heads_of_tokens == ((1, 2, 3, 7), (0, 3, 1, 2))
    heads_side_by_side = reshape_first((1, 7, 2, 3), (1, 7, 6), (0, 2, 1, 3))
    assert heads_side_by_side is None
    assert inverse((0, 3, 1, 2)) == (0, 2, 3, 1)


def test_there_and_back_through_operators_by_element_is_nothing() -> None:
    sketch = Sketch()
    x = sketch.transpose(sketch.input("x", 1, 3, 7), 0, 2, 1)
    half = sketch.constant("half", np.array(0.5, np.float32))
    x = sketch.value("Gelu", [sketch.site(sketch.value("Mul", [x, half], 1, 7, 3), "a.in")], 1, 7, 3, approximate="none")
    after, _ = kept(sketch.model(sketch.transpose(x, 0, 2, 1)), "cancel_transposes")
    assert operators(after) == {"Mul": 1, "Site": 1, "Gelu": 1}


def test_an_axis_goes_along() -> None:
    sketch = Sketch()
    x = sketch.transpose(sketch.input("x", 1, 6, 7), 0, 2, 1)
    left, right = sketch.values("Split", [x], [(1, 7, 2), (1, 7, 4)], axis=2, num_outputs=2)
    soft = sketch.value("Softmax", [right], 1, 7, 4, axis=-1)
    model = sketch.model(sketch.value("Concat", [sketch.transpose(left, 0, 2, 1), sketch.transpose(soft, 0, 2, 1)], 1, 6, 7, axis=1))
    done, _ = kept(model, "cancel_transposes")
    assert operators(done) == {"Split": 1, "Softmax": 1, "Concat": 1}
    assert {node.op_type: node.attributes["axis"].as_int() for node in done.graph} == {"Split": 1, "Softmax": 1, "Concat": 1}


def test_a_constant_that_is_spread_is_not_passed() -> None:
    sketch = Sketch()
    x = sketch.transpose(sketch.input("x", 1, 3, 7), 0, 2, 1)
    x = sketch.value("Add", [x, sketch.noise("bias", 3)], 1, 7, 3)
    assert operators(kept(sketch.model(sketch.transpose(x, 0, 2, 1)), "cancel_transposes")[0])["Transpose"] == 2


def test_a_constant_that_adds_an_axis_is_not_passed() -> None:
    sketch = Sketch()
    x = sketch.transpose(sketch.input("x", 1, 3, 7), 0, 2, 1)
    x = sketch.value("Mul", [x, sketch.constant("half", np.full((1, 1, 1, 1), 0.5, np.float32))], 1, 1, 7, 3)
    assert operators(kept(sketch.model(x), "cancel_transposes")[0]) == {"Transpose": 1, "Mul": 1}


def test_a_transpose_with_another_reader_stays_for_it() -> None:
    sketch = Sketch()
    x = sketch.transpose(sketch.input("x", 1, 3, 7), 0, 2, 1)
    norm = sketch.value("LayerNormalization", [x, sketch.noise("g", 3), sketch.noise("b", 3)], 1, 7, 3, axis=-1)
    back = sketch.transpose(x, 0, 2, 1)
    model = sketch.model(sketch.value("Add", [sketch.transpose(norm, 0, 2, 1), back], 1, 3, 7))
    assert operators(kept(model, "cancel_transposes")[0]) == {"Transpose": 2, "LayerNormalization": 1, "Add": 1}


def test_readers_that_turn_alike_share_one_turn() -> None:
    sketch = Sketch()
    x = sketch.value("Softmax", [sketch.input("x", 1, 7, 3)], 1, 7, 3, axis=1)
    turned = [sketch.transpose(sketch.site(x, f"{name}.in"), 0, 2, 1) for name in "qkv"]
    products = [sketch.value("MatMul", [sketch.noise(name, 4, 3), value], 1, 4, 7) for name, value in zip("qkv", turned, strict=True)]
    model = sketch.model(sketch.value("Concat", products, 1, 12, 7, axis=1))
    after, _ = kept(model, "cancel_transposes")
    assert operators(after) == {"Softmax": 1, "Transpose": 1, "Site": 3, "MatMul": 3, "Concat": 1}


def test_heads_put_side_by_side_and_turned_are_turned_once() -> None:
    sketch = Sketch()
    heads = sketch.value("MatMul", [sketch.input("p", 1, 2, 7, 7), sketch.input("v", 1, 2, 7, 3)], 1, 2, 7, 3)
    tokens = sketch.site(sketch.reshape(sketch.transpose(heads, 0, 2, 1, 3), 1, 7, 6), "out.in")
    after, _ = kept(sketch.model(sketch.value("Softmax", [sketch.transpose(tokens, 0, 2, 1)], 1, 6, 7, axis=2)), "cancel_transposes")
    assert operators(after) == {"MatMul": 1, "Transpose": 1, "Reshape": 1, "Site": 1, "Softmax": 1}


def test_the_tiny_network_as_convolutions_has_fewer_transposes_than_before(tiny: Any, tiny_trial: ContractTrial) -> None:
    after = run_passes(tiny.graph.clone(), ["linear_to_conv", "merge_equal", "cancel_transposes"])
    check_contract(tiny.graph, after, tiny_trial, "cancel_transposes")
    assert operators(after)["Transpose"] < operators(tiny.graph)["Transpose"]
    assert operators(after)["Site"] == operators(tiny.graph)["Site"]
