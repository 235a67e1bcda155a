"""Laws 1-4 of docs/architecture.md on the text encoder, and one slot table for both networks."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from quad.core.errors import CompatibilityError, InputError
from quad.core.slots import TEXT_ENCODER, UNET
from quad.lora.fit.slot_inputs import slot_inputs
from quad.lora.read import FloatAdapter, LowRank
from quad.model.base.modules import TextModule, share_copy
from quad.model.slots.attention import add_sites
from quad.model.slots.network import Slotted, slot_network, slot_networks
from tests.model.conftest import random_lora

ATTENTION, MLP = ("q_proj", "k_proj", "v_proj", "out_proj"), ("fc1", "fc2")
IDS = torch.tensor([[1, 7, 3, 5, 2, 0, 0, 0]])


@pytest.fixture(scope="module", params=["quick_gelu", "gelu"])
def text(request: pytest.FixtureRequest) -> CLIPTextModel:
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=12, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=8,
        bos_token_id=1, eos_token_id=2, pad_token_id=0, hidden_act=request.param,
    )  # fmt: skip
    return CLIPTextModel(config).eval().requires_grad_(False)


def pairs(tensors: dict[str, Tensor], prefix: str = "") -> dict[str, LowRank]:
    paths = [name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")]
    return {prefix + path: LowRank(*(tensors[f"{path}.lora_{role}.weight"].numpy() for role in "AB")) for path in paths}


def adapter(name: str, weights: dict[str, LowRank]) -> FloatAdapter:
    return FloatAdapter(name=name, weights=weights, rank=max(pair.rank for pair in weights.values()), digest=name)


def run(slotted: Slotted, adapter: FloatAdapter | None) -> Tensor:
    slots = {name: torch.from_numpy(value) for name, value in slot_inputs(adapter, slotted.table).items()}
    assert slotted.text_encoder is not None
    with torch.no_grad():
        return slotted.text_encoder(IDS, slots=slots)


@pytest.fixture(scope="module")
def tensors(text: CLIPTextModel) -> dict[str, Tensor]:
    """Of the text encoder, for the adapter `words`."""
    return random_lora(text, (*ATTENTION, *MLP), (4, 2), 1)


@pytest.fixture(scope="module")
def adapters(unet: UNet2DConditionModel, text: CLIPTextModel, tensors: dict[str, Tensor]) -> list[FloatAdapter]:
    """In the U-Net alone, in both, in the text encoder alone."""
    picture = pairs(random_lora(unet, ("to_q", "conv_in"), (4,), 2))
    both = {**pairs(random_lora(unet, ("to_v",), (8,), 3)), **pairs(random_lora(text, ("q_proj", "fc2"), (6,), 4), "text_encoder.")}
    return [adapter("picture", picture), adapter("both", both), adapter("words", pairs(tensors, "text_encoder."))]


@pytest.fixture(scope="module")
def slotted(unet: UNet2DConditionModel, text: CLIPTextModel, adapters: list[FloatAdapter]) -> Slotted:
    return slot_networks(unet, text, adapters)


def test_law_1_zero_adapter_is_the_base_bit_for_bit(text: CLIPTextModel, slotted: Slotted, adapters: list[FloatAdapter]) -> None:
    sited = TextModule(share_copy(text)).eval()
    add_sites(sited)
    assert slotted.text_encoder is not None
    with torch.no_grad():
        base = sited(IDS)
        assert torch.equal(slotted.text_encoder(IDS), base)
    assert torch.equal(run(slotted, None), base)
    assert torch.equal(run(slotted, adapters[0]), base)  # one that is in the U-Net alone


def test_law_2_float_slots_are_diffusers_with_the_adapter(
    text: CLIPTextModel, slotted: Slotted, adapters: list[FloatAdapter], tensors: dict[str, Tensor]
) -> None:
    reference = copy.deepcopy(text)
    state = {f"text_encoder.{name}": tensor for name, tensor in tensors.items()}
    StableDiffusionLoraLoaderMixin.load_lora_into_text_encoder(state, None, reference, prefix="text_encoder", adapter_name="words")
    with torch.no_grad():
        want, base = reference(IDS).last_hidden_state, text(IDS).last_hidden_state
    rms = want.square().mean().sqrt()
    assert (want - base).abs().max() > 0.1 * rms  # the adapter does something
    assert (run(slotted, adapters[2]) - want).abs().max() <= 1e-4 * rms


def test_law_3_padding_a_rank_changes_nothing(unet: UNet2DConditionModel, text: CLIPTextModel, adapters: list[FloatAdapter]) -> None:
    narrow = run(slot_networks(unet, text, adapters[2:]), adapters[2])
    wide_networks = slot_networks(unet, text, adapters, max_rank=20)
    assert {slot.rank for slot in wide_networks.table.slots} == {20}
    assert (run(wide_networks, adapters[2]) - narrow).abs().max() <= 1e-5 * narrow.square().mean().sqrt()


def test_law_4_a_b_a_leaves_no_trace(slotted: Slotted, adapters: list[FloatAdapter]) -> None:
    base, first, other = run(slotted, None), run(slotted, adapters[1]), run(slotted, adapters[2])
    assert not torch.equal(first, other)
    assert torch.equal(run(slotted, adapters[1]), first)
    assert torch.equal(run(slotted, None), base)


def test_every_slot_input_matters_and_takes_gradients(slotted: Slotted) -> None:
    rng = np.random.default_rng(0)
    text_table = slotted.table.of(TEXT_ENCODER)
    slots = {
        name: torch.from_numpy(rng.normal(scale=0.1, size=shape).astype(np.float32)).requires_grad_()
        for name, shape in text_table.input_shapes().items()
    }
    assert slotted.text_encoder is not None
    slotted.text_encoder(IDS, slots=slots).square().mean().backward()
    assert [name for name, slot in slots.items() if slot.grad is None or not slot.grad.any()] == []


def test_one_table_the_unets_slots_first_each_in_module_order(
    unet: UNet2DConditionModel, text: CLIPTextModel, slotted: Slotted, adapters: list[FloatAdapter]
) -> None:
    order = [path for path, _ in unet.named_modules()] + [f"text_encoder.{path}" for path, _ in text.named_modules()]
    paths = [slot.path for slot in slotted.table.slots]
    assert paths == sorted(paths, key=order.index)
    assert set(paths) == set().union(*(adapter.weights for adapter in adapters))
    for slot in slotted.table.slots:
        assert slot.component == (TEXT_ENCODER if slot.path.startswith("text_encoder.") else UNET)
        assert slot.rank == max(adapter.weights[slot.path].rank for adapter in adapters if slot.path in adapter.weights)
    assert slotted.unet.table.slots + slotted.text_encoder.table.slots == slotted.table.slots  # type: ignore[union-attr]
    assert slot_networks(unet, text, adapters[::-1]).table.digest == slotted.table.digest


def test_without_text_the_table_is_what_it_was_and_the_text_encoder_has_no_slots(
    unet: UNet2DConditionModel, text: CLIPTextModel, adapters: list[FloatAdapter]
) -> None:
    alone = slot_networks(unet, text, adapters[:1])
    assert alone.text_encoder is None
    assert alone.table.digest == slot_network(unet, adapters[:1])[1].digest


def test_the_callers_text_encoder_is_left_alone_and_weights_are_shared(text: CLIPTextModel, slotted: Slotted) -> None:
    assert slotted.text_encoder is not None
    shared = dict(slotted.text_encoder.named_parameters())
    assert all(shared[f"text_encoder.{name}"] is p for name, p in text.named_parameters())
    assert type(text.encoder.layers[0].mlp.fc1) is nn.Linear
    assert type(text.encoder.layers[0].self_attn.q_proj) is nn.Linear


def test_text_paths_are_refused_where_there_are_no_text_slots(unet: UNet2DConditionModel, adapters: list[FloatAdapter]) -> None:
    with pytest.raises(
        InputError, match=r"adapter 'both', slot 'text_encoder\.[\w.]+': expected a module of unet, found none of that name"
    ):
        slot_network(unet, adapters)
    _, table = slot_network(unet, adapters[:1])
    with pytest.raises(CompatibilityError, match=r"adapter 'words': expected targets among the \d+ slots, found text_encoder\."):
        slot_inputs(adapters[2], table)


def test_a_text_path_that_is_no_layer_is_refused(unet: UNet2DConditionModel, text: CLIPTextModel, slotted: Slotted) -> None:
    pair = LowRank(np.zeros((1, 4), np.float32), np.zeros((4, 1), np.float32))
    with pytest.raises(InputError, match=r"slot 'text_encoder\.pooler': expected a module of unet or text_encoder, found none"):
        slot_networks(unet, text, [adapter("odd", {"text_encoder.pooler": pair})])
    with pytest.raises(InputError, match=r"slot 'text_encoder\.embeddings\.token_embedding': expected a Linear or Conv2d"):
        slot_networks(unet, text, [adapter("odd", {"text_encoder.embeddings.token_embedding": pair})])
    assert slotted.text_encoder is not None
    with pytest.raises(CompatibilityError, match="slots: expected 24 inputs, found no 'text_encoder"):
        slotted.text_encoder(IDS, slots={"conv_in.lora_A": torch.zeros(4, 9, 3, 3)})
