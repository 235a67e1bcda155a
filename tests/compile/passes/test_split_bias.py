"""The bias of the layers that are named becomes an Add; others keep theirs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from quad.compile.passes.contract import ContractTrial, check_contract
from quad.compile.passes.integers.split_bias import SplitBias
from tests.compile.passes.conftest import Sketch, feeds, operators


def layer(op: str, *, bias: tuple[int, ...] | None = (5,), computed: bool = False, **attributes: float) -> ir.Model:
    """One layer of 5 channels and a Site behind it."""
    sketch = Sketch()
    x = sketch.input("x", *{"Conv": (1, 3, 4, 4), "Conv1d": (1, 3, 7), "Gemm": (2, 3)}[op])
    weight = sketch.noise("fc.weight", *{"Conv": (5, 3, 1, 1), "Conv1d": (5, 3, 1), "Gemm": (3, 5)}[op])
    shape = {"Conv": (1, 5, 4, 4), "Conv1d": (1, 5, 7), "Gemm": (2, 5)}[op]
    offset = None if bias is None else sketch.noise("fc.bias", *bias)
    if computed:
        offset = sketch.value("Relu", [sketch.noise("fc.bias", 5)], 5)
    y = sketch.value(op.removesuffix("1d"), [x, weight, offset], *shape, **attributes)
    return sketch.model(sketch.value("Relu", [sketch.site(y, "next.in")], *shape))


def split(before: ir.Model, *weights: str) -> ir.Model:
    after = SplitBias(weights)(before.clone()).model
    check_contract(before, after, ContractTrial(inputs=feeds(before)), "split_bias")
    return after


WITH_BIAS = {
    "Conv": layer("Conv"),
    "Conv1d": layer("Conv1d"),
    "Gemm": layer("Gemm"),
    "Gemm of rows": layer("Gemm", bias=(2, 5)),
    "Gemm of one": layer("Gemm", bias=(1,)),
    "Gemm with factors": layer("Gemm", beta=0.25, alpha=2.0),
}


@pytest.mark.parametrize("model", WITH_BIAS.values(), ids=WITH_BIAS)
def test_the_bias_is_added_behind_the_layer(model: ir.Model) -> None:
    after = split(model, "fc.weight")
    assert operators(after)["Add"] == 1
    layer_ = next(node for node in after.graph if node.op_type in ("Conv", "Gemm"))
    assert len(layer_.inputs) == 2
    assert {node.op_type for node in layer_.outputs[0].consumers()} == {"Add"}


def test_other_layers_keep_theirs() -> None:
    assert operators(split(layer("Conv"), "other.weight"))["Add"] == 0


def test_none_has_nothing_to_split() -> None:
    assert operators(split(layer("Conv", bias=None), "fc.weight"))["Add"] == 0


def test_attributes_go_along() -> None:
    sketch = Sketch()
    operands = [sketch.input("x", 1, 3, 5, 5), sketch.noise("fc.weight", 4, 3, 3, 3), sketch.noise("fc.bias", 4)]
    y = sketch.value("Conv", operands, 1, 4, 3, 3, pads=[1, 1, 1, 1], strides=[2, 2])
    after = split(sketch.model(y), "fc.weight")
    assert tuple(next(node for node in after.graph if node.op_type == "Conv").attributes["strides"].as_ints()) == (2, 2)
    assert after.graph.outputs[0].name == "out_0"


def test_a_computed_bias_is_refused() -> None:
    with pytest.raises(ir.passes.PassError, match="n1: a computed bias"):
        SplitBias(["fc.weight"])(layer("Conv", computed=True))


def test_the_constant_is_the_bias_itself() -> None:
    before = layer("Conv")
    after = split(before, "fc.weight")
    add = next(node for node in after.graph if node.op_type == "Add")
    np.testing.assert_array_equal(add.inputs[1].const_value.numpy().ravel(), before.graph.initializers["fc.bias"].const_value.numpy())
