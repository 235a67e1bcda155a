"""Laws 1-4 of docs/architecture.md on the torch network."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from quad.core.errors import CompatibilityError
from quad.core.slots import SlotTable
from quad.lora.fit.slot_inputs import slot_inputs
from quad.lora.read import FloatAdapter, LowRank
from quad.model.adapters import read_adapter
from quad.model.base.modules import share_copy
from quad.model.slots.attention import add_sites
from quad.model.slots.network import SlottedNetwork, slot_network, slot_networks
from quad.model.slots.table import new_table
from quad.runtime.adapters.buffers import Buffers
from quad.runtime.adapters.weighted_sum import mix_adapters

Inputs = tuple[Tensor, Tensor, Tensor]
LoraFile = Callable[..., Path]
KINDS = (("attention", (4,)), ("feed-forward", (16, 8)), ("convolutions", (4, 7, 16)))


def run(network: SlottedNetwork, table: SlotTable, adapter: FloatAdapter | None, inputs: Inputs) -> Tensor:
    slots = {name: torch.from_numpy(value) for name, value in slot_inputs(adapter, table).items()}
    with torch.no_grad():
        return network(*inputs, slots)


@pytest.fixture
def adapters(unet: UNet2DConditionModel, lora_file: LoraFile) -> list[FloatAdapter]:
    return [read_adapter(kind, lora_file(kind, ranks, seed), unet) for seed, (kind, ranks) in enumerate(KINDS)]


def test_law_1_zero_adapter_is_the_base_bit_for_bit(unet: UNet2DConditionModel, adapters: list[FloatAdapter], inputs: Inputs) -> None:
    network, table = slot_network(unet, adapters)
    sited = share_copy(unet)
    add_sites(sited)
    with torch.no_grad():
        base = sited(*inputs).sample
        assert torch.equal(network(*inputs, {}), base)
    assert torch.equal(run(network, table, None, inputs), base)


@pytest.mark.parametrize(("kind", "ranks"), KINDS)
def test_law_2_float_slots_are_diffusers_with_the_adapter(
    kind: str, ranks: tuple[int, ...], unet: UNet2DConditionModel, adapters: list[FloatAdapter], lora_file: LoraFile, inputs: Inputs
) -> None:
    network, table = slot_network(unet, adapters)
    reference = copy.deepcopy(unet)
    path = lora_file(kind, ranks, [k for k, _ in KINDS].index(kind))
    reference.load_lora_adapter(path.parent, weight_name=path.name, prefix="unet")
    with torch.no_grad():
        want, base = reference(*inputs).sample, unet(*inputs).sample
    rms = want.square().mean().sqrt()
    output = run(network, table, next(a for a in adapters if a.name == kind), inputs)
    assert (want - base).abs().max() > 0.01 * rms  # the adapter does something
    assert (output - want).abs().max() <= 1e-4 * rms


def test_law_2_with_linear_projections(unet: UNet2DConditionModel, lora_file: LoraFile, inputs: Inputs) -> None:
    """SD2's U-Nets have proj_in and proj_out as Linear, and files may still spell them as 1x1 convolutions."""
    torch.manual_seed(4)
    config = {key: value for key, value in unet.config.items() if not key.startswith("_")}
    unet = UNet2DConditionModel.from_config({**config, "use_linear_projection": True}).eval().requires_grad_(False)
    layer = unet.mid_block.attentions[0].proj_in
    assert isinstance(layer, nn.Linear)
    key = "unet.mid_block.attentions.0.proj_in"
    tensors = {f"{key}.lora_A.weight": torch.randn(4, 32, 1, 1), f"{key}.lora_B.weight": torch.randn(32, 4, 1, 1)}
    adapter = read_adapter("a", lora_file(tensors=tensors), unet)
    network, table = slot_network(unet, [adapter])
    merged = copy.deepcopy(unet)
    merged.mid_block.attentions[0].proj_in.weight += tensors[f"{key}.lora_B.weight"].flatten(1) @ tensors[f"{key}.lora_A.weight"].flatten(1)
    with torch.no_grad():
        want = merged(*inputs).sample
    assert (run(network, table, adapter, inputs) - want).abs().max() <= 1e-4 * want.square().mean().sqrt()


@pytest.mark.parametrize("index", range(len(KINDS)))
def test_law_3_padding_a_rank_changes_nothing(index: int, unet: UNet2DConditionModel, adapters: list[FloatAdapter], inputs: Inputs) -> None:
    adapter = adapters[index]
    narrow = run(*slot_network(unet, [adapter]), adapter, inputs)
    wide_network, wide_table = slot_network(unet, adapters, max_rank=20)
    wide = run(wide_network, wide_table, adapter, inputs)
    assert {slot.rank for slot in wide_table.slots} == {20}
    # Zeros add exactly; only the order in which a longer dot product is summed may differ.
    assert (wide - narrow).abs().max() <= 1e-5 * narrow.square().mean().sqrt()


def test_law_4_a_b_a_leaves_no_trace(unet: UNet2DConditionModel, adapters: list[FloatAdapter], inputs: Inputs) -> None:
    network, table = slot_network(unet, adapters)
    base, first = run(network, table, None, inputs), run(network, table, adapters[0], inputs)
    other = run(network, table, adapters[2], inputs)
    assert not torch.equal(first, other)
    assert torch.equal(run(network, table, adapters[0], inputs), first)
    assert torch.equal(run(network, table, None, inputs), base)


def test_every_slot_input_matters_and_takes_gradients(unet: UNet2DConditionModel, adapters: list[FloatAdapter], inputs: Inputs) -> None:
    """A slot whose input the output does not feel has been lost; distillation trains through the same gradients."""
    network, table = slot_network(unet, adapters)
    full = {slot.path: LowRank(np.full(slot.a_shape, 0.05, np.float32), np.full(slot.b_shape, 0.05, np.float32)) for slot in table.slots}
    values = slot_inputs(FloatAdapter(name="all", weights=full, rank=16, digest=""), table)
    slots = {name: torch.from_numpy(value).requires_grad_() for name, value in values.items()}
    network(*inputs, slots).square().mean().backward()
    assert [name for name, slot in slots.items() if slot.grad is None or not slot.grad.any()] == []


def test_the_callers_unet_is_left_alone_and_weights_are_shared(unet: UNet2DConditionModel, adapters: list[FloatAdapter]) -> None:
    kinds = {path: type(m) for path, m in unet.named_modules()}
    network, _ = slot_network(unet, adapters)
    assert {path: type(m) for path, m in unet.named_modules()} == kinds
    shared = dict(network.unet.named_parameters())
    assert all(shared[name] is p for name, p in unet.named_parameters())
    assert type(unet.mid_block.attentions[0].transformer_blocks[0].attn1.processor).__name__ == "AttnProcessor2_0"


def test_table_is_the_union_in_module_order_with_the_largest_rank(unet: UNet2DConditionModel, adapters: list[FloatAdapter]) -> None:
    network, table = slot_network(unet, adapters)
    order = [path for path, _ in unet.named_modules()]
    paths = [slot.path for slot in table.slots]
    assert paths == sorted(paths, key=order.index)
    assert set(paths) == set().union(*(a.weights for a in adapters))
    for slot in table.slots:
        assert slot.rank == max(a.weights[slot.path].rank for a in adapters if slot.path in a.weights)
    assert slot_network(unet, adapters[::-1])[1].digest == table.digest  # the order of adapters does not matter
    assert {f"{path}.lora_mid" for path in paths} <= network.sites.keys()


@pytest.mark.parametrize("room", [1, 2, 5])
def test_a_slot_has_rank_for_so_many_of_the_adapters_that_reach_it(
    room: int, unet: UNet2DConditionModel, adapters: list[FloatAdapter]
) -> None:
    ranks = {slot.path: slot.rank for slot in new_table({"unet": unet}, adapters, room=room).slots}
    reaching = {path: [a.weights[path].rank for a in adapters if path in a.weights] for path in ranks}
    assert ranks == {path: sum(sorted(there, reverse=True)[:room]) for path, there in reaching.items()}
    assert max(len(there) for there in reaching.values()) == 2


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
def test_with_room_for_two_their_sum_is_diffusers_with_both(
    unet: UNet2DConditionModel, adapters: list[FloatAdapter], lora_file: LoraFile, inputs: Inputs
) -> None:
    """The case of an LCM-LoRA with a style: each of full rank, at layers that both have."""
    slotted = slot_networks(unet, nn.Identity(), adapters, room=2)
    ink, pen = adapters[:2]
    buffers = {a.name: Buffers(slot_inputs(a, slotted.table)) for a in (ink, pen)}
    mixed, notes = mix_adapters(buffers, {ink.name: 1.0, pen.name: 0.8}, slotted.table, Buffers(slot_inputs(None, slotted.table)))
    reference = copy.deepcopy(unet)
    for seed, (kind, ranks) in enumerate(KINDS[:2]):
        path = lora_file(kind, ranks, seed)
        reference.load_lora_adapter(path.parent, weight_name=path.name, prefix="unet", adapter_name=kind)
    reference.set_adapters([ink.name, pen.name], [1.0, 0.8])
    with torch.no_grad():
        want = reference(*inputs).sample
        output = slotted.unet(*inputs, {name: torch.from_numpy(values) for name, values in mixed.items()})
    assert notes == ()
    assert (output - want).abs().max() <= 1e-5 * want.square().mean().sqrt()


def test_with_max_rank_every_slot_has_it_and_more_where_an_adapter_has_more(
    unet: UNet2DConditionModel, adapters: list[FloatAdapter]
) -> None:
    _, table = slot_network(unet, adapters, max_rank=8)
    largest = {slot.path: max(a.weights[slot.path].rank for a in adapters if slot.path in a.weights) for slot in table.slots}
    assert {slot.path: slot.rank for slot in table.slots} == {path: max(8, rank) for path, rank in largest.items()}
    assert set(largest.values()) == {4, 7, 8, 16}


def test_an_adapter_without_its_slots_is_refused(unet: UNet2DConditionModel, adapters: list[FloatAdapter]) -> None:
    _, table = slot_network(unet, adapters[:1])
    with pytest.raises(CompatibilityError, match=r"adapter 'convolutions': expected targets among the \d+ slots, found conv_in, .*; build"):
        slot_inputs(adapters[2], table)
    network, table = slot_network(unet, adapters[2:])
    small = FloatAdapter(
        name="big",
        weights={"conv_in": LowRank(np.zeros((40, 9, 3, 3), np.float32), np.zeros((16, 40, 1, 1), np.float32))},
        rank=40,
        digest="",
    )
    with pytest.raises(CompatibilityError, match=r"adapter 'big', slot 'conv_in': expected A up to \(4, 9, 3, 3\)"):
        slot_inputs(small, table)
    with pytest.raises(CompatibilityError, match=r"slots: expected \d+ inputs, found no 'conv_in.lora_B'"):
        network(torch.zeros(1, 9, 8, 8), torch.zeros(1), torch.zeros(1, 6, 16), {"conv_in.lora_A": torch.zeros(4, 9, 3, 3)})
