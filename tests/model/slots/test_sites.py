"""Sites change nothing until asked, and survive into a traced program by name."""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from quad.model.base.modules import share_copy
from quad.model.slots.attention import add_sites
from quad.model.slots.sites import SITE_OP, Site, exporting

Inputs = tuple[Tensor, Tensor, Tensor]


def run(network: nn.Module, inputs: Inputs) -> Tensor:
    with torch.no_grad():
        return network(*inputs).sample


def test_sited_network_equals_the_stock_one(unet: UNet2DConditionModel, inputs: Inputs) -> None:
    stock = run(unet, inputs)
    copied = share_copy(unet)
    add_sites(copied)
    assert (run(copied, inputs) - stock).abs().max() <= 1e-5 * stock.std()


def test_add_sites_keeps_parameter_names_and_storage(unet: UNet2DConditionModel) -> None:
    copied = share_copy(unet)
    add_sites(copied)
    before, after = dict(unet.named_parameters()), dict(copied.named_parameters())
    assert before.keys() == after.keys()
    assert all(before[name] is after[name] for name in before)
    assert not any(isinstance(m, Site) for m in unet.modules())


def test_every_layer_and_attention_operand_has_a_site(unet: UNet2DConditionModel) -> None:
    copied = share_copy(unet)
    sites = add_sites(copied)
    layers = {f"{path}.in" for path, m in unet.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    attentions = {path.removesuffix(".to_q") for path, _ in unet.named_modules() if path.endswith(".to_q")}
    assert set(sites) == layers | {f"{path}.{operand}" for path in attentions for operand in "qkvp"}
    assert add_sites(copied).keys() == sites.keys()  # a second time changes nothing


def test_each_site_is_on_the_way_to_the_output(unet: UNet2DConditionModel, inputs: Inputs) -> None:
    copied = share_copy(unet)
    sites = add_sites(copied)
    inputs = (inputs[0][:1], inputs[1], inputs[2][:1])
    stock = run(copied, inputs)
    dead = []
    for name, site in sites.items():
        site.transform = lambda x: x * 1.5 + 0.1
        if torch.equal(run(copied, inputs), stock):
            dead.append(name)
        site.transform = None
    assert dead == []
    assert torch.equal(run(copied, inputs), stock)


def test_attention_operands_are_those_of_the_two_matmuls(unet: UNet2DConditionModel, inputs: Inputs) -> None:
    copied = share_copy(unet)
    sites = add_sites(copied)
    inputs_of: dict[str, Tensor] = {}
    path = "mid_block.attentions.0.transformer_blocks.0.attn2"
    for operand in "qkvp":
        sites[f"{path}.{operand}"].transform = lambda x, key=operand: inputs_of.setdefault(key, x)
    seen_out: list[Tensor] = []
    sites[f"{path}.to_out.0.in"].transform = lambda x: seen_out.append(x) or x
    run(copied, inputs)
    torch.testing.assert_close(inputs_of["p"], (inputs_of["q"] @ inputs_of["k"].transpose(-1, -2)).softmax(-1))
    torch.testing.assert_close(seen_out[0], (inputs_of["p"] @ inputs_of["v"]).transpose(1, 2).flatten(2))


def test_a_traced_program_names_every_site() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2)).eval()
    sites = add_sites(network)
    x = torch.randn(1, 3, 3, 3)
    with exporting():
        program = torch.export.export(network, (x,))
    nodes = [n for n in program.graph.nodes if n.target is SITE_OP]
    assert [n.args[1] for n in nodes] == list(sites) == ["0.in", "2.in"]
    with torch.no_grad():
        assert torch.equal(program.module()(x), network(x))
