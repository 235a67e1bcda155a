"""The exporter's table of operators is made once, and each trace has a copy of its own."""

from __future__ import annotations

import onnx_ir as ir
import torch
from torch import nn
from torch.onnx._internal.exporter._registration import ONNXRegistry

from quad.compile.export import GraphSpec, traced
from quad.compile.operator_table import one_operator_table
from quad.model.slots.sites import SITE_OP, SitedLinear

SPEC = GraphSpec(component="unet", inputs={"input": torch.zeros(1, 4)}, output="y")


def test_tables_are_equal_and_what_an_export_adds_stays_its_own() -> None:
    plain = ONNXRegistry.from_torchlib()
    with one_operator_table():
        first, second = ONNXRegistry.from_torchlib(), ONNXRegistry.from_torchlib()
    assert {name: len(forms) for name, forms in first.functions.items()} == {name: len(forms) for name, forms in plain.functions.items()}
    assert first.opset_version == plain.opset_version
    first.register_op(SITE_OP, lambda x, name: x)
    first.functions["aten::add.Tensor"].clear()
    assert SITE_OP.name() not in second.functions
    assert second.functions["aten::add.Tensor"]


def test_the_table_is_made_once_for_each_opset() -> None:
    with one_operator_table():
        first, again, other = ONNXRegistry.from_torchlib(), ONNXRegistry.from_torchlib(), ONNXRegistry.from_torchlib(opset_version=20)
    assert first.functions["aten::relu"][0] is again.functions["aten::relu"][0]
    assert other.opset_version == 20 != first.opset_version


def test_traces_with_it_are_the_same_and_torch_gets_its_own_back() -> None:
    before = ONNXRegistry.__dict__["from_torchlib"]
    torch.manual_seed(0)
    module = SitedLinear(nn.Linear(4, 3), "layer")
    texts = [ir.to_proto(traced(module, SPEC)).SerializeToString() for _ in range(2)]
    assert texts[0] == texts[1]
    assert ONNXRegistry.__dict__["from_torchlib"] is before
