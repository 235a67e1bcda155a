"""Heads become independent; q, k and v are still quantized once, and placement takes the probabilities' Site of every head."""

from __future__ import annotations

from typing import Any

import msgspec
import onnx_ir as ir
import pytest

from quad.compile.passes import run_passes
from quad.compile.passes.contract import ContractTrial, check_contract
from quad.compile.placement.qdq import place_qdq
from quad.compile.targets import load_target
from quad.core.encoding import Encoding
from quad.core.slots import SlotTable
from tests.compile.passes.conftest import Sketch, feeds, kept, operators, site_names

HEADS, TOKENS, WIDTH = 3, 7, 4


def attention(*, mask: str = "", joined: bool = True, heads: int = HEADS) -> ir.Model:
    sketch = Sketch()
    q, k, v = (sketch.site(sketch.input(name, 1, heads, TOKENS, WIDTH), f"attn.{name}") for name in "qkv")
    scores = sketch.value("MatMul", [q, sketch.transpose(k, 0, 1, 3, 2)], 1, heads, TOKENS, TOKENS)
    if mask == "shared":
        scores = sketch.value("Add", [scores, sketch.noise("mask", 1, 1, TOKENS, TOKENS)], 1, heads, TOKENS, TOKENS)
    elif mask == "own":
        scores = sketch.value("Add", [sketch.noise("mask", 1, heads, TOKENS, TOKENS), scores], 1, heads, TOKENS, TOKENS)
    elif mask == "own, without a batch":
        scores = sketch.value("Add", [scores, sketch.noise("mask", heads, TOKENS, TOKENS)], 1, heads, TOKENS, TOKENS)
    p = sketch.site(sketch.value("Softmax", [scores], 1, heads, TOKENS, TOKENS, axis=-1), "attn.p")
    y = sketch.value("MatMul", [p, v], 1, heads, TOKENS, WIDTH)
    if joined:
        y = sketch.reshape(sketch.transpose(y, 0, 2, 1, 3), 1, TOKENS, heads * WIDTH)
    return sketch.model(y)


@pytest.mark.parametrize("mask", ["", "shared", "own"])
def test_each_head_has_its_own_products(mask: str) -> None:
    after, _ = kept(attention(mask=mask), "split_heads")
    found = operators(after)
    assert (found["MatMul"], found["Softmax"], found["Concat"]) == (2 * HEADS, HEADS, 1)
    assert found["Split"] == (4 if mask == "own" else 3)
    assert site_names(after) == {"attn.q": 1, "attn.k": 1, "attn.v": 1, "attn.p": HEADS}
    assert found["Transpose"] == 1  # that of k; the heads are joined where they belong


def test_heads_that_are_not_joined_next_stay_an_axis() -> None:
    after, _ = kept(attention(joined=False), "split_heads")
    assert tuple(after.graph.outputs[0].shape) == (1, HEADS, TOKENS, WIDTH)


def test_one_head_is_left_alone() -> None:
    model = attention(heads=1)
    assert operators(kept(model, "split_heads")[0]) == operators(model)


def test_a_mask_whose_heads_are_its_first_axis_is_left_alone() -> None:
    model = attention(mask="own, without a batch")
    assert operators(kept(model, "split_heads")[0]) == operators(model)


def test_placement_gives_every_head_the_one_encoding() -> None:
    model = attention()
    encodings: dict[str, Encoding] = {
        name: Encoding(bits=16, signed=False, symmetric=False, scale=(8 / 65535,), zero_point=(32768,)) for name in ("attn.q", "attn.p")
    }
    target = msgspec.structs.replace(load_target("cpu"), integer=())  # every Site with an encoding becomes Q, DQ
    whole = place_qdq(model.clone(), encodings, SlotTable(()), target).model
    heads = place_qdq(run_passes(model.clone(), ["split_heads"]), encodings, SlotTable(()), target).model
    assert (operators(whole)["QuantizeLinear"], operators(heads)["QuantizeLinear"]) == (2, 1 + HEADS)
    check_contract(whole, heads, ContractTrial(inputs=feeds(model), tolerance=1e-4))


def test_the_tiny_network_keeps_its_contract(tiny: Any, tiny_trial: ContractTrial) -> None:
    after = run_passes(tiny.graph.clone(), ["split_heads"])
    check_contract(tiny.graph, after, tiny_trial, "split_heads")
    assert operators(after)["Softmax"] > operators(tiny.graph)["Softmax"]
