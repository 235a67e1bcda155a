"""A network captured in one trace gives the graph that torch's own traces give; what changes tensors in place goes torch's way."""

from __future__ import annotations

import onnx_ir as ir
import pytest
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import Tensor, nn
from torch.export import _trace
from torch.nn import functional
from torch.onnx._internal.exporter import _fx_passes
from torch.onnx._internal.fx.passes.type_promotion import _TypePromotionInterpreter

from quad.compile.export import GraphSpec, traced
from quad.compile.graph_specs import component_specs
from quad.compile.one_trace import captured
from quad.compile.passes import tidy
from quad.model.slots.sites import Site
from quad.quantize.observe.calibrate import component_networks
from tests.small_model import Tiny


class _Composite(nn.Module):
    """Composite operators, some with an ONNX form and some without, mixed types, and what nobody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.site = nn.LayerNorm(8), Site("site.in")
        self.register_buffer("steps", torch.arange(8))

    def forward(self, x: Tensor) -> Tensor:
        _ = torch.arange(3)[:, None] + 1
        mixed = functional.gelu(self.norm(x)) * self.steps + torch.arange(x.shape[1]) // 2
        halves = torch.cat([half.flip(-1) for half in self.site(mixed).chunk(2, dim=-1)], dim=-1)
        return torch.logsumexp(halves.reshape(1, 2, 4), dim=-1) / 3.0


class _InPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        y[:, 1:] = x[:, 1:]
        return y.mul_(2.0)


def _bytes(module: nn.Module, spec: GraphSpec) -> bytes:
    model = ClearMetadataAndDocStringPass()(tidy(traced(module, spec))).model  # where the exporter had it from is told otherwise
    return bytes(ir.to_proto(model).SerializeToString())


def _of_torch(module: nn.Module, spec: GraphSpec, monkeypatch: pytest.MonkeyPatch) -> bytes:
    with monkeypatch.context() as patch:
        patch.setattr("quad.compile.export.captured", lambda *arguments: None)
        return _bytes(module, spec)


@pytest.mark.parametrize(("module", "in_one_trace"), [(_Composite(), True), (_InPlace(), False)])
def test_any_network(module: nn.Module, in_one_trace: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = GraphSpec(component="unet", inputs={"x": torch.zeros(1, 8)}, output="y")
    programs: list[object] = []
    monkeypatch.setattr("quad.compile.export.captured", lambda *arguments: programs.append(captured(*arguments)) or programs[-1])
    here = _bytes(module, spec)
    assert [program is not None for program in programs] == [in_one_trace]
    assert here == _of_torch(module, spec, monkeypatch)


def test_the_networks_of_a_pipeline(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    networks = component_networks(tiny.base, tiny.as_slotted)
    specs = component_specs(tiny.base, networks, tiny.table)
    for component in ("unet", "text_encoder"):
        network, spec = networks[component], specs[component]
        assert _bytes(network, spec) == _of_torch(network, spec, monkeypatch), component


def test_torch_is_as_it_was() -> None:
    before = [_trace.make_fx, _fx_passes.decompose_with_registry, _TypePromotionInterpreter.run_node]
    traced(_Composite(), GraphSpec(component="unet", inputs={"x": torch.zeros(1, 8)}, output="y"))
    assert before == [_trace.make_fx, _fx_passes.decompose_with_registry, _TypePromotionInterpreter.run_node]
