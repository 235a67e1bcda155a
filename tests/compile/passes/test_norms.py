"""Norms composed and decomposed are the same norm."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from quad.compile.passes import run_passes
from quad.compile.passes.contract import ContractTrial, check_contract
from tests.compile.passes.conftest import Sketch, feeds, kept, operators


def spelled(*, scale: float = 1.0, rank: int = 3, epsilon: float = 1e-3) -> ir.Model:
    """A GroupNorm of 6 channels in 3 groups as older exporters write it."""
    sketch = Sketch()
    x = sketch.reshape(sketch.input("x", 1, 6, 4, 5), 1, 3, 40)
    one, zero = sketch.constant("one", np.full(3, scale, np.float32)), sketch.constant("zero", np.zeros(3, np.float32))
    x = sketch.reshape(sketch.value("InstanceNormalization", [x, one, zero], 1, 3, 40, epsilon=epsilon), 1, 6, 4, 5)
    shape = (1, 6, 1, 1) if rank == 4 else (6, 1, 1)
    x = sketch.value("Mul", [x, sketch.noise("gamma", *shape)], 1, 6, 4, 5)
    return sketch.model(sketch.value("Add", [sketch.noise("beta", *shape), x], 1, 6, 4, 5))


@pytest.mark.parametrize("rank", [3, 4])
def test_a_group_norm_in_five_nodes_is_one(rank: int) -> None:
    after, _ = kept(spelled(rank=rank), "to_group_norm")
    (node,) = after.graph
    assert node.op_type == "GroupNormalization"
    assert node.attributes["num_groups"].as_int() == 3
    assert node.attributes["epsilon"].as_float() == pytest.approx(1e-3)
    assert [tuple(value.shape) for value in (*node.inputs[1:], node.outputs[0])] == [(6,), (6,), (1, 6, 4, 5)]


def test_an_instance_norm_with_a_scale_of_its_own_stays() -> None:
    assert "GroupNormalization" not in operators(kept(spelled(scale=2.0), "to_group_norm")[0])


def test_a_group_norm_without_a_shape_gets_it(tiny: Any) -> None:
    model = tiny.graph.clone()
    norm = next(node for node in model.graph if node.op_type == "GroupNormalization")
    expected, norm.outputs[0].shape = tuple(norm.outputs[0].shape), None
    after = run_passes(model, ["to_group_norm"])
    found = next(node for node in after.graph if node.op_type == "GroupNormalization")
    assert tuple(found.outputs[0].shape) == expected


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_norm_is_spelled_out(bias: bool) -> None:
    sketch = Sketch()
    affine = [sketch.noise("gamma", 6), *([sketch.noise("beta", 6)] if bias else [])]
    y = sketch.value("LayerNormalization", [sketch.input("x", 1, 7, 6), *affine], 1, 7, 6, axis=-1, epsilon=0.1)
    after, _ = kept(sketch.model(y), "decompose_layer_norm")
    assert set(operators(after)) == {"ReduceMean", "Sub", "Mul", "Add", "Sqrt", "Reciprocal"}
    assert operators(after)["Add"] == (2 if bias else 1)


def test_a_layer_norm_over_two_axes_stays() -> None:
    sketch = Sketch()
    y = sketch.value("LayerNormalization", [sketch.input("x", 1, 7, 6), sketch.noise("gamma", 7, 6)], 1, 7, 6, axis=1)
    assert operators(kept(sketch.model(y), "decompose_layer_norm")[0]) == {"LayerNormalization": 1}


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_norm_is_written_with_an_inverse_root(bias: bool) -> None:
    sketch = Sketch()
    affine = [sketch.noise("gamma", 6), *([sketch.noise("beta", 6)] if bias else [])]
    y = sketch.value("LayerNormalization", [sketch.input("x", 1, 7, 6), *affine], 1, 7, 6, axis=-1, epsilon=0.1)
    after, _ = kept(sketch.model(y), "write_norms")
    assert set(operators(after)) == {"ReduceMean", "Sub", "Relu", "Mul", "Add", "Pow"}


def test_a_group_norm_is_written_on_four_axes_at_most() -> None:
    sketch = Sketch()
    x = sketch.input("x", 1, 6, 4, 5)
    y = sketch.value("GroupNormalization", [x, sketch.noise("gamma", 6), sketch.noise("beta", 6)], 1, 6, 4, 5, num_groups=3, epsilon=1e-3)
    after, _ = kept(sketch.model(y), "write_norms")
    assert set(operators(after)) == {"Reshape", "ReduceMean", "Sub", "Relu", "Mul", "Add", "Pow"}
    assert max(len(output.shape) for node in after.graph for output in node.outputs) == 4


@pytest.mark.parametrize(("place", "tolerance"), [(0, 1e-5), (1, 5e-3)], ids=["the gain's", "the variance's"])
def test_an_inverse_root_that_errs_is_mended(place: int, tolerance: float) -> None:
    sketch = Sketch()
    y = sketch.value("LayerNormalization", [sketch.input("x", 1, 7, 6), sketch.noise("gamma", 6)], 1, 7, 6, axis=-1)
    before = sketch.model(y)
    wrong = run_passes(before.clone(), ["write_norms"])
    root = [node for node in wrong.graph if node.op_type == "Pow"][place]
    root.inputs[1].const_value = ir.tensor(np.array(-0.51, np.float32), name="wrong")  # some percent off
    check_contract(before, wrong, ContractTrial(inputs=feeds(before), tolerance=tolerance, group=1), "write_norms")


def test_the_tiny_network_keeps_its_contract(tiny: Any, tiny_trial: ContractTrial) -> None:
    after = run_passes(tiny.graph.clone(), ["decompose_layer_norm", "to_group_norm"])
    check_contract(tiny.graph, after, tiny_trial, "decompose_layer_norm")
    assert operators(tiny.graph)["LayerNormalization"]
    assert not operators(after)["LayerNormalization"]
