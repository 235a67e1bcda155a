"""Slots as Gemm: fewer nodes, the same numbers; slots of one input share one down-projection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from quad.compile.passes import RemoveSites, run_passes
from quad.compile.passes.contract import ContractTrial, check_contract
from tests.compile.passes.conftest import Sketch, kept, operators

TOKENS, WIDTH = 5, 8
PASSES = ("slot_gemm", "fuse_slots")


def joined(sketch: Sketch, values: Sequence[ir.Value]) -> ir.Model:
    """One output of all, along the last axis: a session gives the first output only."""
    widths = [value.shape.numpy()[-1] for value in values]
    shape = (*values[0].shape.numpy()[:-1], sum(widths))
    return RemoveSites()(sketch.model(sketch.value("Concat", values, *shape, axis=-1))).model


def attention_inputs(paths: Sequence[str] = ("to_q", "to_k", "to_v"), ranks: Sequence[int] = (2, 3, 4)) -> ir.Model:
    """Slotted layers that read one x, without Sites, as they are after placement."""
    sketch = Sketch()
    x = sketch.input("x", 1, TOKENS, WIDTH)
    return joined(sketch, [sketch.slotted(x, path, WIDTH, rank) for path, rank in zip(paths, ranks, strict=True)])


def test_a_branch_is_two_gemms_that_turn_nothing_around_and_add_as_they_write() -> None:
    model = attention_inputs(("fc",), (2,))
    after, found = kept(model, "slot_gemm")
    assert operators(model) == {"MatMul": 3, "Transpose": 2, "Add": 2, "Concat": 1}
    assert {"MatMul": 1, "Gemm": 2, "Add": 1}.items() <= operators(after).items()
    assert not {"Transpose"} & set(operators(after))
    assert found.effects is not None
    assert found.effects[0] > 0


def test_slots_of_one_input_share_one_down_projection() -> None:
    after, _ = kept(attention_inputs(), *PASSES)
    assert (operators(after)["Gemm"], operators(after)["Split"]) == (1 + 3, 1)


def test_slots_of_other_inputs_keep_their_own() -> None:
    sketch = Sketch()
    first, second = sketch.input("x", 1, TOKENS, WIDTH), sketch.input("y", 1, TOKENS, WIDTH)
    after, _ = kept(joined(sketch, [sketch.slotted(first, "a", WIDTH), sketch.slotted(second, "b", WIDTH)]), *PASSES)
    assert (operators(after)["Gemm"], operators(after)["Split"]) == (4, 0)


def dequantized_slots(dtype: type[np.integer]) -> ir.Model:
    """Integer slots of different scales that read one x."""
    sketch, outputs = Sketch(), []
    x = sketch.input("x", TOKENS, WIDTH)
    for number, rank in enumerate((2, 3)):
        slot = sketch.input(f"l{number}.lora_A", rank, WIDTH, dtype=ir.DataType.from_numpy(np.dtype(dtype)))
        scale, zero = sketch.constant(f"s{number}", np.float32(0.1 + number)), sketch.constant(f"z{number}", dtype(0))
        a = sketch.value("DequantizeLinear", [slot, scale, zero], rank, WIDTH)
        outputs.append(sketch.value("MatMul", [x, sketch.transpose(a, 1, 0)], TOKENS, rank))
    return joined(sketch, outputs)


@pytest.mark.parametrize("dtype", [np.int8, np.int16])
def test_integers_are_stacked_as_integers_each_row_with_its_slots_scale(dtype: type[np.integer]) -> None:
    model = dequantized_slots(dtype)
    after, _ = kept(model, *PASSES)
    assert (operators(model)["DequantizeLinear"], operators(after)["DequantizeLinear"]) == (2, 1)
    concat = next(node for node in after.graph if node.op_type == "Concat" and not node.outputs[0].is_graph_output())
    assert concat.outputs[0].dtype == ir.DataType.from_numpy(np.dtype(dtype))


@pytest.mark.parametrize("attributes", [{}, {"transA": 1, "transB": 1}, {"alpha": 0.5, "transB": 1}], ids=["W", "x turned", "factor"])
def test_another_gemm_is_no_down_projection(attributes: dict[str, Any]) -> None:
    """Rows of W are channels of the output only where W is turned, and a factor is to stay."""
    sketch = Sketch()
    x = sketch.input("x", *((WIDTH, TOKENS) if "transA" in attributes else (TOKENS, WIDTH)))
    shape = (3, WIDTH) if "transB" in attributes else (WIDTH, 3)
    slots = [sketch.input(f"l{number}.lora_A", *shape) for number in range(2)]
    model = joined(sketch, [sketch.value("Gemm", [x, slot], TOKENS, 3, **attributes) for slot in slots])
    assert operators(kept(model, "fuse_slots")[0]) == operators(model)


def test_a_constant_matrix_is_no_slot() -> None:
    sketch = Sketch()
    x = sketch.input("x", TOKENS, WIDTH)
    model = sketch.model(sketch.value("MatMul", [x, sketch.transpose(sketch.noise("w", 3, WIDTH), 1, 0)], TOKENS, 3))
    assert operators(kept(model, *PASSES)[0]) == operators(model)


def test_a_sum_that_spreads_or_has_other_readers_stays_an_add() -> None:
    sketch = Sketch()
    x, y, b = sketch.input("x", 1, TOKENS, WIDTH), sketch.input("y", WIDTH), sketch.input("fc.lora_B", WIDTH, WIDTH)
    product = sketch.value("MatMul", [x, sketch.transpose(b, 1, 0)], 1, TOKENS, WIDTH)
    spread = sketch.value("Add", [product, y], 1, TOKENS, WIDTH)
    shared = sketch.value("Add", [spread, product], 1, TOKENS, WIDTH)
    after, _ = kept(sketch.model(shared), "slot_gemm")
    assert operators(after)["Add"] == 2


def test_the_tiny_network_keeps_its_contract(tiny: Any, tiny_trial: ContractTrial) -> None:
    plain = RemoveSites()(tiny.graph.clone()).model
    after = run_passes(plain.clone(), PASSES)
    check_contract(plain, after, tiny_trial, "slots")
    assert operators(after)["Transpose"] < operators(plain)["Transpose"]
