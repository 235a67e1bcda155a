"""The check of law 6 can fail: every way to break a graph that it promises to see, it sees and names."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from quad.compile.passes.contract import ContractTrial, check_contract
from quad.compile.passes.edit import Writer, replace, scalar
from quad.compile.passes.integers.remove_sites import is_site
from quad.core.errors import VerificationError
from tests.compile.passes.conftest import Sketch, feeds


def two_layers() -> ir.Model:
    sketch = Sketch()
    x = sketch.slotted(sketch.input("x", 1, 4, 6), "first", 5)
    scaled = sketch.value("Mul", [x, sketch.constant("factor", np.array(0.25, np.float32))], 1, 4, 5)
    return sketch.model(sketch.slotted(scaled, "second", 3))


def node_of(model: ir.Model, op: str, index: int = 0) -> ir.Node:
    return [node for node in model.graph if node.op_type == op][index]


def check(before: ir.Model, after: ir.Model, group: int = 16) -> Any:
    return check_contract(before, after, ContractTrial(inputs=feeds(before), group=group), "broken")


def test_a_graph_keeps_its_own_contract_and_stays_as_it_is() -> None:
    model = two_layers()
    nodes = len(model.graph)
    found = check(model, model, group=1)
    assert found.errors == {"noise": 0.0}
    assert found.effects is not None
    assert 0 < found.effects[0] <= found.effects[1]
    assert found.runs == 1 + 4
    assert len(model.graph) == nodes
    assert any(is_site(node) for node in model.graph)


def test_a_lost_factor_is_an_error_of_the_output() -> None:
    broken = two_layers()
    product = node_of(broken, "Mul")
    assert scalar(product.inputs[1]) == 0.25
    replace(product.outputs[0], product.inputs[0])
    with pytest.raises(VerificationError, match=r"broken: expected the output for noise to 1e-05, found an error of"):
        check(two_layers(), broken)


def test_every_output_is_compared() -> None:
    def model(factor: float) -> ir.Model:
        sketch = Sketch()
        x = sketch.input("x", 2, 3)
        scaled = sketch.value("Mul", [x, sketch.constant("factor", np.array(factor, np.float32))], 2, 3)
        return sketch.model(sketch.value("Relu", [x], 2, 3), scaled)

    assert check(model(0.5), model(0.5)).errors == {"": 0.0}
    with pytest.raises(VerificationError, match="found an error of"):
        check(model(0.5), model(0.6))


@pytest.mark.parametrize("group", [1, 16])
@pytest.mark.parametrize("lost", ["first.lora_A", "second.lora_B"])
def test_a_slot_without_effect_is_named(lost: str, group: int) -> None:
    """The readers get the very numbers of the noise plus 0 times the slot: the outputs agree, only the perturbation can see it."""
    model, broken = two_layers(), two_layers()
    generator = np.random.default_rng(0)
    noise = {}
    for value in model.graph.inputs:
        if ".lora_" in str(value.name):
            noise[value.name] = (0.05 * generator.standard_normal(value.shape.numpy())).clip(-0.4, 0.4).astype(np.float32)
    value = next(value for value in broken.graph.inputs if value.name == lost)
    tensor = ir.tensor(noise[lost], name="frozen")
    frozen = ir.Value(name="frozen", const_value=tensor, shape=ir.Shape(noise[lost].shape), type=ir.TensorType(tensor.dtype))
    broken.graph.register_initializer(frozen)
    readers = list(value.uses())
    writer = Writer(readers[0].node, "idle")
    shape = noise[lost].shape
    idle = writer.value("Add", [writer.value("Mul", [value, writer.constant("zero", np.zeros((), np.float32))], shape), frozen], shape)
    for reader, index in readers:
        reader.replace_input_with(index, idle)
    with pytest.raises(VerificationError, match=rf"every slot input to matter after it as before, found 1 that do not, first {lost}"):
        check(model, broken, group)


@pytest.mark.parametrize("lost", ["first.lora_B", "second.lora_A"])
def test_a_slot_that_is_no_longer_read_is_named(lost: str) -> None:
    broken = two_layers()
    value = next(value for value in broken.graph.inputs if value.name == lost)
    tensor = ir.tensor(np.zeros(value.shape.numpy(), np.float32), name="frozen")
    frozen = ir.Value(name="frozen", const_value=tensor, shape=value.shape, type=ir.TensorType(tensor.dtype))
    broken.graph.register_initializer(frozen)
    value.replace_all_uses_with(frozen)
    with pytest.raises(VerificationError, match=rf"1 that do not, first {lost}"):
        check(two_layers(), broken)


def test_a_slot_that_never_mattered_is_refused_too() -> None:
    sketch = Sketch()
    sketch.input("idle.lora_A", 2, 6)
    model = sketch.model(sketch.slotted(sketch.input("x", 1, 4, 6), "first", 5))
    with pytest.raises(VerificationError, match=r"1 that do not, first idle\.lora_A"):
        check(model, model)


def test_a_site_must_not_vanish() -> None:
    broken = two_layers()
    site = node_of(broken, "Site", 1)
    replace(site.outputs[0], site.inputs[0])
    with pytest.raises(VerificationError, match=r"the same 4 Sites after it, found 3, first difference first\.lora_mid"):
        check(two_layers(), broken)


def test_an_input_must_keep_its_shape() -> None:
    broken = two_layers()
    broken.graph.inputs[0].shape = ir.Shape((1, 5, 6))
    with pytest.raises(VerificationError, match="the same 5 inputs after it"):
        check(two_layers(), broken)


def test_the_tiny_network_passes_its_own_check_in_few_runs(tiny: Any, tiny_trial: ContractTrial) -> None:
    found = check_contract(tiny.graph, tiny.graph, tiny_trial)
    assert found.errors == {"transform": 0.0, "removal": 0.0, "base": 0.0, "noise": 0.0}
    assert found.runs < len(tiny.table.input_shapes())
