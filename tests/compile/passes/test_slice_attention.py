"""Attention by slices: the same rows, never all scores at once."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from quad.compile.passes.attention.slice_attention import MOST_SCORES, SliceAttention
from quad.compile.passes.contract import ContractTrial, check_contract
from tests.compile.passes.conftest import Sketch, operators
from tests.compile.passes.test_integer import quantized

HEADS, QUERIES, KEYS, WIDTH = 2, 12, 5, 3


def attention(*, encoded: bool = False, mask: bool = False, axis: int = -1, shown: bool = False) -> ir.Model:
    sketch = Sketch()
    q, k = sketch.input("q", 1, HEADS, QUERIES, WIDTH), sketch.input("k", 1, HEADS, WIDTH, KEYS)
    scores = sketch.value("MatMul", [q, k], 1, HEADS, QUERIES, KEYS)
    if mask:
        scores = sketch.value("Add", [scores, sketch.noise("mask", 1, 1, QUERIES, KEYS)], 1, HEADS, QUERIES, KEYS)
    p = sketch.value("Softmax", [scores], 1, HEADS, QUERIES, KEYS, axis=axis)
    weights = quantized(sketch, p, "p.q", 1 / 65536, np.uint16(0)) if encoded else p
    out = sketch.value("MatMul", [weights, sketch.input("v", 1, HEADS, KEYS, WIDTH)], 1, HEADS, QUERIES, WIDTH)
    return sketch.model(out, p) if shown else sketch.model(out)


def sliced(model: ir.Model, most: int) -> ir.Model:
    """After the pass, its contract held."""
    rng = np.random.default_rng(1)
    given = {str(value.name): rng.standard_normal(value.shape.numpy()).astype(np.float32) for value in model.graph.inputs}
    after = SliceAttention(most)(model.clone()).model
    check_contract(model, after, ContractTrial(inputs=given, tolerance=1e-6, group=1), "slice_attention")
    return after


@pytest.mark.parametrize("encoded", [False, True])
@pytest.mark.parametrize(("most", "count"), [(HEADS * KEYS * 4, 3), (HEADS * KEYS * 5, 3), (1, QUERIES), (HEADS * KEYS * 7, 2)])
def test_slices_are_the_fewest_equal_ones_that_hold_no_more_than_that(most: int, count: int, encoded: bool) -> None:
    found = operators(sliced(attention(encoded=encoded), most))
    expected = {"Split": 1, "MatMul": 2 * count, "Softmax": count, "Concat": 1}
    assert found == expected | ({"QuantizeLinear": count, "DequantizeLinear": count} if encoded else {})


def test_one_slice_is_computed_before_the_next_one_begins() -> None:
    """An engine runs nodes in their order: scores of one slice are gone when those of the next one are made."""
    order = [node.op_type for node in sliced(attention(), HEADS * KEYS * 4).graph]
    assert order == ["Split", *["MatMul", "Softmax", "MatMul"] * 3, "Concat"]


@pytest.mark.parametrize("model", [attention(), attention(encoded=True)])
def test_what_is_small_stays(model: ir.Model) -> None:
    assert operators(sliced(model, HEADS * QUERIES * KEYS)) == operators(model)
    assert HEADS * QUERIES * KEYS < MOST_SCORES


@pytest.mark.parametrize("model", [attention(mask=True), attention(axis=2), attention(shown=True)])
def test_what_is_another_thing_stays(model: ir.Model) -> None:
    assert operators(sliced(model, 1)) == operators(model)
