"""What a slot, K or V brings stands on the left of its product."""

from __future__ import annotations

from quad.compile.passes import RemoveSites, run_passes
from tests.compile.passes.conftest import Sketch, kept, operators

TOKENS, WIDTH, HEADS = 5, 8, 2


def test_a_linear_slot_comes_as_it_lies() -> None:
    sketch = Sketch()
    model = RemoveSites()(sketch.model(sketch.slotted(sketch.input("x", 1, TOKENS, WIDTH), "fc", 6))).model
    after, report = kept(model, "left_operands")
    assert report.effects is not None
    slots = {str(value.name): [(node.op_type, index) for node, index in value.uses()] for value in after.graph.inputs if value.name != "x"}
    assert slots == {"fc.lora_A": [("MatMul", 0)], "fc.lora_B": [("MatMul", 0)]}


def test_k_and_v_are_on_the_left() -> None:
    sketch = Sketch()
    q, k, v = (sketch.input(name, 1, HEADS, TOKENS, WIDTH) for name in ("q", "k", "v"))
    scores = sketch.value("MatMul", [q, sketch.transpose(k, 0, 1, 3, 2)], 1, HEADS, TOKENS, TOKENS)
    model = sketch.model(sketch.value("MatMul", [sketch.value("Softmax", [scores], 1, HEADS, TOKENS, TOKENS), v], 1, HEADS, TOKENS, WIDTH))
    after, _ = kept(model, "left_operands")
    products = [node for node in after.graph if node.op_type == "MatMul"]
    assert products[0].inputs[0] is next(value for value in after.graph.inputs if value.name == "k")
    assert products[1].inputs[0].producer().inputs[0].name == "v"


def test_constants_and_slots_on_the_left_stay() -> None:
    sketch = Sketch()
    left = sketch.value("MatMul", [sketch.input("fc.lora_A", 3, WIDTH), sketch.input("x", WIDTH, TOKENS)], 3, TOKENS)
    model = sketch.model(sketch.value("MatMul", [left, sketch.noise("w", TOKENS, 4)], 3, 4))
    assert operators(run_passes(model.clone(), ["left_operands"])) == operators(model)
