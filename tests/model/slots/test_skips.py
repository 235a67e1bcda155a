"""Split skips: the float network does not notice, both halves have a Site, and each half is what the skip says."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel

from quad.core.errors import UnsupportedError
from quad.model.slots.network import SlottedNetwork, slot_network
from quad.model.slots.sites import SplitSite
from quad.model.slots.skips import skip_channels, split_skips

SPLIT = tuple(f"up_blocks.{i}.resnets.{j}.{name}" for i in (0, 1) for j in (0, 1) for name in ("conv1", "conv_shortcut"))


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8, in_channels=9, out_channels=4, block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=16,
        attention_head_dim=2, norm_num_groups=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    ).eval().requires_grad_(False)  # fmt: skip


@pytest.fixture
def network(unet: UNet2DConditionModel) -> SlottedNetwork:
    return slot_network(unet, ())[0]


def call(network: SlottedNetwork) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    sample, hidden = torch.randn(2, 9, 8, 8, generator=generator), torch.randn(2, 5, 16, generator=generator)
    return network(sample, torch.tensor([500.0]), hidden, {})


def test_float_network_stays_bit_for_bit_observed_or_not(network: SlottedNetwork) -> None:
    before = call(network)
    assert split_skips(network) == SPLIT
    assert torch.equal(call(network), before)
    for site in network.sites.values():
        site.transform = lambda x: x
    assert torch.equal(call(network), before)


def test_every_reader_of_a_concat_has_two_sites_and_twice_is_once(network: SlottedNetwork) -> None:
    before = set(network.sites)
    split_skips(network)
    assert set(network.sites) - before == {f"{path}.in_skip" for path in SPLIT}
    sites = dict(network.sites)
    assert split_skips(network) == SPLIT
    assert network.sites == sites


def test_the_halves_are_the_decoders_and_the_encoders(unet: UNet2DConditionModel, network: SlottedNetwork) -> None:
    """The input of `conv_shortcut.in_skip` is, number for number, an output of the down path."""
    split_skips(network)
    pushed: list[torch.Tensor] = []
    hooks = [network.unet.conv_in.register_forward_hook(lambda _m, _i, out: pushed.append(out))]
    for block in network.unet.down_blocks:
        for module in (*block.resnets, *(getattr(block, "attentions", None) or ()), *(block.downsamplers or ())):
            hooks.append(module.register_forward_hook(lambda _m, _i, out: pushed.append(out[0] if isinstance(out, tuple) else out)))
    read: list[torch.Tensor] = []
    for name, site in network.sites.items():
        if name.endswith("conv_shortcut.in_skip"):
            site.transform = lambda x: (read.append(x), x)[1]
    call(network)
    assert [x.shape[1] for x in read] == skip_channels(unet)[::-1]
    assert all(any(x.shape == y.shape and torch.equal(x, y) for y in pushed) for x in read)


def test_a_half_can_be_changed_alone(network: SlottedNetwork) -> None:
    split_skips(network)
    site = network.unet.up_blocks[0].resnets[0].conv_shortcut.site
    assert isinstance(site, SplitSite)
    site.skip.transform = torch.zeros_like
    x = torch.randn(1, 32, 2, 2)
    assert torch.equal(site(x)[:, : site.channels], x[:, : site.channels])
    assert not site(x)[:, site.channels :].any()


def test_an_up_path_of_another_kind_is_refused(network: SlottedNetwork) -> None:
    network.unet.up_blocks[0].resnets[0].in_channels = 4
    with pytest.raises(UnsupportedError, match=r"^up_blocks\.0\.resnets\.0: expected channels of a decoder and a skip, found 4; [^\n]+$"):
        split_skips(network)
