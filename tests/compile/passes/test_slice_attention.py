"""Attention by slices: the same rows, never all scores at once; and its products on integers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from quad.compile.passes.attention.slice_attention import MOST_SCORES, SliceAttention
from quad.compile.passes.contract import ContractTrial, check_contract
from quad.compile.passes.integers.integer_products import IntegerProducts
from tests.compile.passes.conftest import Sketch, operators
from tests.compile.passes.test_integer import KERNEL, quantized

HEADS, QUERIES, KEYS, WIDTH = 2, 12, 5, 3
BYTE = np.int8(0)


def attention(*, encoded: bool = False, mask: bool = False, axis: int = -1, shown: bool = False, batch: int = 1) -> ir.Model:
    sketch = Sketch()
    q, k = sketch.input("q", batch, HEADS, QUERIES, WIDTH), sketch.input("k", batch, HEADS, WIDTH, KEYS)
    scores = sketch.value("MatMul", [q, k], batch, HEADS, QUERIES, KEYS)
    if mask:
        scores = sketch.value("Add", [scores, sketch.noise("mask", 1, 1, QUERIES, KEYS)], batch, HEADS, QUERIES, KEYS)
    p = sketch.value("Softmax", [scores], batch, HEADS, QUERIES, KEYS, axis=axis)
    weights = quantized(sketch, p, "p.q", 1 / 65536, np.uint16(0)) if encoded else p
    out = sketch.value("MatMul", [weights, sketch.input("v", batch, HEADS, KEYS, WIDTH)], batch, HEADS, QUERIES, WIDTH)
    return sketch.model(out, p) if shown else sketch.model(out)


def eight_bit_attention(*, q_zero: np.generic = BYTE, k_zero: np.generic = BYTE) -> ir.Model:
    """As placement leaves one whose operands all have 8 bits: k is turned behind its DequantizeLinear."""
    sketch = Sketch()
    q = quantized(sketch, sketch.input("q", 1, HEADS, QUERIES, WIDTH), "q.q", 0.02, q_zero)
    k = quantized(sketch, sketch.input("k", 1, HEADS, KEYS, WIDTH), "k.q", 0.02, k_zero)
    scores = sketch.value("MatMul", [q, sketch.transpose(k, 0, 1, 3, 2)], 1, HEADS, QUERIES, KEYS)
    p = quantized(sketch, sketch.value("Softmax", [scores], 1, HEADS, QUERIES, KEYS, axis=-1), "p.q", 0.7 / 255, np.uint8(0))
    v = quantized(sketch, sketch.input("v", 1, HEADS, KEYS, WIDTH), "v.q", 0.02, BYTE)
    return sketch.model(sketch.value("MatMul", [p, v], 1, HEADS, QUERIES, WIDTH))


def kept(model: ir.Model, *passes: ir.passes.PassBase) -> ir.Model:
    """After the passes, their contract held."""
    rng = np.random.default_rng(1)
    given = {str(value.name): rng.standard_normal(value.shape.numpy()).astype(np.float32) for value in model.graph.inputs}
    after = model.clone()
    for one in passes:
        after = one(after).model
    check_contract(model, after, ContractTrial(inputs=given, tolerance=1e-6, group=1), "attention")
    return after


def sliced(model: ir.Model, most: int) -> ir.Model:
    return kept(model, SliceAttention(most))


@pytest.mark.parametrize("encoded", [False, True])
@pytest.mark.parametrize(
    ("most", "count"), [(QUERIES * KEYS, HEADS), (KEYS * 4, HEADS * 3), (KEYS * 5, HEADS * 3), (KEYS * 7, HEADS * 2), (1, HEADS * QUERIES)]
)
def test_slices_are_the_fewest_equal_ones_that_hold_no_more_than_that(most: int, count: int, encoded: bool) -> None:
    """Heads are apart before queries are."""
    found = operators(sliced(attention(encoded=encoded), most))
    splits = 3 if count == HEADS else 3 + HEADS
    expected = {"Split": splits, "MatMul": 2 * count, "Softmax": count, "Concat": 1 if count == HEADS else 1 + HEADS}
    assert found == expected | ({"QuantizeLinear": count, "DequantizeLinear": count} if encoded else {})


def test_one_slice_is_computed_before_the_next_one_begins() -> None:
    """An engine runs nodes in their order: scores of one slice are gone when those of the next one are made."""
    order = [node.op_type for node in sliced(attention(), KEYS * 4).graph]
    assert [op for op in order if op not in ("Split", "Concat")] == ["MatMul", "Softmax", "MatMul"] * HEADS * 3


@pytest.mark.parametrize("model", [attention(), attention(encoded=True)])
def test_what_is_small_stays(model: ir.Model) -> None:
    assert operators(sliced(model, HEADS * QUERIES * KEYS)) == operators(model)
    assert HEADS * QUERIES * KEYS < MOST_SCORES


@pytest.mark.parametrize("model", [attention(mask=True), attention(axis=2), attention(shown=True), attention(batch=2)])
def test_what_is_another_thing_stays(model: ir.Model) -> None:
    assert operators(sliced(model, 1)) == operators(model)


@pytest.mark.parametrize("q_zero", [BYTE, np.uint8(77)], ids=["signed", "unsigned"])
def test_products_of_bytes_are_kernels_on_integers(q_zero: np.generic) -> None:
    """To the bit: integers are multiplied as they were rounded."""
    after = kept(eight_bit_attention(q_zero=q_zero), IntegerProducts(KEYS))
    assert operators(after) == {"QuantizeLinear": 4, "Transpose": 1, KERNEL: 2, "Softmax": 1}
    assert {node.inputs[0].dtype for node in after.graph if node.op_type == KERNEL} == {ir.DataType.UINT8}


def test_an_attention_of_fewer_keys_stays() -> None:
    model = eight_bit_attention()
    assert operators(kept(model, IntegerProducts(KEYS + 1))) == operators(model)


def test_kernels_are_sliced_as_products_are() -> None:
    after = kept(eight_bit_attention(), IntegerProducts(KEYS), SliceAttention(KEYS * 4))
    assert operators(after)[KERNEL] == 2 * HEADS * 3
    assert operators(after)["QuantizeLinear"] == 3 + HEADS * 3  # q, k and v once, what softmax gives in each slice


def test_a_product_whose_right_operand_has_a_zero_point_stays() -> None:
    assert operators(kept(eight_bit_attention(k_zero=np.int8(3)), IntegerProducts(KEYS)))[KERNEL] == 1


def test_a_product_of_a_byte_and_a_float_stays() -> None:
    sketch = Sketch()
    q, k = sketch.input("q", 1, HEADS, QUERIES, WIDTH), sketch.input("k", 1, HEADS, WIDTH, KEYS)
    model = sketch.model(sketch.value("MatMul", [q, quantized(sketch, k, "k.q", 0.02, BYTE)], 1, HEADS, QUERIES, KEYS))
    assert operators(kept(model, IntegerProducts(KEYS))) == operators(model)
