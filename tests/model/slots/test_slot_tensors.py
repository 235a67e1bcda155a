"""An adapter at its own ranks answers what it does zero-padded to the slots', and a slot that it has nothing in costs nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from quad.core.errors import CompatibilityError
from quad.core.slots import NORMALISED, SEARCHED, SlotMode
from quad.core.tensor_names import lora_mid_name
from quad.lora.fit.integers import balanced_inputs
from quad.lora.fit.slot_inputs import slot_inputs
from quad.model.adapters import read_adapter
from quad.model.slots.network import slot_network
from quad.model.slots.slot_tensors import slot_tensors
from quad.quantize.observe.observers import Feed, observe
from tests.model.conftest import Inputs

KINDS = (("attention", (4,)), ("convolutions", (4, 7)))


@pytest.mark.parametrize("mode", [SEARCHED, NORMALISED])
def test_an_adapter_at_its_own_ranks_is_the_padded_one(
    mode: SlotMode, unet: UNet2DConditionModel, lora_file: Callable[..., Path], inputs: Inputs
) -> None:
    adapters = [read_adapter(kind, lora_file(kind, ranks, 5), unet) for kind, ranks in KINDS]
    network, table = slot_network(unet, adapters, 20, mode)
    for adapter in adapters:
        padded = balanced_inputs(adapter, table)
        own = slot_tensors(padded, table)
        ranks = {slot.path: len(own[slot.a_name]) for slot in table.slots}
        assert ranks == {slot.path: adapter.weights[slot.path].rank if slot.path in adapter.weights else 0 for slot in table.slots}
        with torch.no_grad():
            want = network(*inputs, {name: torch.from_numpy(values) for name, values in padded.items()})
            assert (network(*inputs, own) - want).abs().max() <= 1e-5 * want.square().mean().sqrt()
            assert (network(*inputs, {}) - want).abs().max() > 0.01 * want.square().mean().sqrt()


def test_the_zero_adapter_is_the_base_bit_for_bit(unet: UNet2DConditionModel, lora_file: Callable[..., Path], inputs: Inputs) -> None:
    network, table = slot_network(unet, [read_adapter("a", lora_file(), unet)], mode=NORMALISED)
    with torch.no_grad():
        assert torch.equal(network(*inputs, slot_tensors(slot_inputs(None, table), table)), network(*inputs, {}))


def test_a_site_behind_an_empty_slot_hears_zero(unet: UNet2DConditionModel, lora_file: Callable[..., Path], inputs: Inputs) -> None:
    adapters = [read_adapter(kind, lora_file(kind, ranks, 5), unet) for kind, ranks in KINDS]
    network, table = slot_network(unet, adapters)
    tensors = {adapter.name: slot_tensors(balanced_inputs(adapter, table), table) for adapter in adapters}
    feeds = [Feed(name, lambda slots=slots: network(*inputs, slots)) for name, slots in tensors.items()]
    sites = observe({"unet": network}, feeds).sites["unet"]
    for slot in table.slots:
        for adapter in adapters:
            heard = sites[lora_mid_name(slot.path)][adapter.name].histogram
            assert (heard.high - heard.low > 0.0) == (slot.path in adapter.weights)


def test_inputs_that_are_not_whole_are_refused(unet: UNet2DConditionModel, lora_file: Callable[..., Path], inputs: Inputs) -> None:
    adapter = read_adapter("a", lora_file(), unet)
    network, table = slot_network(unet, [adapter])
    given = balanced_inputs(adapter, table)
    given.pop(table.slots[0].b_name)
    with pytest.raises(CompatibilityError, match=f"no '{table.slots[0].b_name}'"):
        network(*inputs, slot_tensors(given, table))
