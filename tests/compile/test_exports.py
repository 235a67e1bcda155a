"""Tests share exports of equal networks; what they share is what torch would write, and nothing that differs is shared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
from torch import nn

from quad.compile.export import GraphSpec, traced
from quad.compile.graph_specs import unet_spec
from quad.model.slots import network
from tests.exports import export_key, sharing


class Scaled(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.factor = nn.Linear(4, 3), factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) * self.factor


SPEC = GraphSpec(component="unet", inputs={"x": torch.zeros(1, 4)}, output="y")


def bent() -> nn.Module:
    module = Scaled(2.0)
    with torch.no_grad():
        module.layer.bias[1] += 1e-6
    return module


def written(model: ir.Model) -> bytes:
    return ir.to_proto(model).SerializeToString()


def test_what_is_shared_is_what_torch_writes(tmp_path: Path) -> None:
    calls = []

    def trace(module: nn.Module, spec: GraphSpec) -> ir.Model:
        calls.append(spec)
        return traced(module, spec)

    share = sharing(tmp_path, trace)
    first, second = share(Scaled(2.0), SPEC), share(Scaled(2.0), SPEC)
    assert len(calls) == 1
    assert written(first) == written(second)
    other = bent()
    assert written(share(other, SPEC)) == written(traced(other, SPEC)) != written(first)
    assert len(calls) == 1
    share(Scaled(3.0), SPEC)
    assert len(calls) == 2


def test_whatever_differs_has_a_key_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def rewired() -> nn.Module:
        module = Scaled(2.0)
        module.forward = module.layer  # type: ignore[method-assign]
        return module

    def buffered(value: float) -> nn.Module:
        module = Scaled(2.0)
        module.register_buffer("shift", torch.tensor([value]))
        return module

    keys = [
        export_key(Scaled(2.0), SPEC),
        export_key(Scaled(2.5), SPEC),
        export_key(buffered(0.0), SPEC),
        export_key(buffered(1.0), SPEC),
        export_key(rewired(), SPEC),
    ]
    keys += [export_key(Scaled(2.0), replace(SPEC, output="z")), export_key(Scaled(2.0), replace(SPEC, inputs={"x": torch.zeros(2, 4)}))]
    assert export_key(Scaled(2.0), SPEC) == keys[0]
    assert export_key(Scaled(2.0), replace(SPEC, inputs={"x": torch.ones(1, 4)})) == keys[0]
    monkeypatch.setattr(network.SlottedNetwork, "forward", lambda self, *_: None)
    keys.append(export_key(Scaled(2.0), SPEC))
    assert None not in keys
    assert len(set(keys)) == len(keys)


def test_a_network_with_slots_is_shared_whatever_its_example_inputs_hold(tiny: Any) -> None:
    """A kind of value that is new in it, and unknown to the key, would have each test trace it for itself."""
    spec = unet_spec(tiny.base, tiny.table)
    key = export_key(tiny.network, spec)
    assert key is not None
    ones = {name: torch.ones_like(value) for name, value in spec.inputs.items()}
    assert export_key(tiny.network, replace(spec, inputs=ones)) == key


def test_a_network_that_holds_something_unknown_is_not_shared() -> None:
    module = Scaled(2.0)
    module.factor = iter((1.0,))  # type: ignore[assignment]
    assert export_key(module, SPEC) is None
