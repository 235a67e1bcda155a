"""What stands beside the matrices of a file, names of the text encoder, and a first convolution of more channels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from quad.core.errors import InputError
from quad.lora.adapter import FloatAdapter
from quad.lora.kinds import BESIDE
from quad.model.adapters import read_adapter
from tests.model.dialects import TARGETS, strong_lora

LAYER = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
FLAT = "lora_unet_" + LAYER.replace(".", "_")
NORM = "lora_unet_mid_block_resnets_0_norm1"
CONV = {"lora_unet_conv_in.lora_down.weight": (2, 4, 3, 3), "lora_unet_conv_in.lora_up.weight": (16, 2, 1, 1)}


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def pair(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    outputs, inputs = unet.get_submodule(LAYER).weight.shape
    return {f"{FLAT}.lora_down.weight": draw(4, inputs), f"{FLAT}.lora_up.weight": draw(outputs, 4), f"{FLAT}.alpha": torch.tensor(4.0)}


def read(tmp_path: Path, unet: UNet2DConditionModel, tensors: dict[str, Tensor], unused: bool = False) -> FloatAdapter:
    save_file({key: value.contiguous() for key, value in tensors.items()}, tmp_path / "a.safetensors")
    return read_adapter("a", tmp_path / "a.safetensors", unet, unused)


@pytest.mark.parametrize(("fragment", "kind"), [row for row in BESIDE if not row[0].endswith(("indices", "size"))])
def test_what_no_slot_carries_is_left_out_where_that_is_asked_for(
    fragment: str, kind: str, unet: UNet2DConditionModel, tmp_path: Path
) -> None:
    tensors = {**pair(unet), f"{NORM}{fragment}": torch.full((16,), -0.25)}
    with pytest.raises(InputError, match=f"expected updates of weights alone, found 1 tensors of {kind}: .*; pass --allow-unused-keys"):
        read(tmp_path, unet, tensors)
    adapter = read(tmp_path, unet, tensors, unused=True)
    assert adapter.notes == (f"1 tensors of {kind} left out, largest value 0.25: {NORM}{fragment}",)
    assert list(adapter.weights) == [LAYER]
    with pytest.raises(InputError, match="there is nothing that a slot could carry"):
        read(tmp_path, unet, {f"{NORM}{fragment}": torch.ones(16)}, unused=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_a_sparse_bias_is_one_of_its_values(dtype: torch.dtype, unet: UNet2DConditionModel, tmp_path: Path) -> None:
    sparse = {f"{FLAT}.bias_indices": torch.tensor([[0, 1]], dtype=dtype), f"{FLAT}.bias_size": torch.tensor([32], dtype=dtype)}
    with pytest.raises(InputError, match="1 tensors of bias differences"):
        read(tmp_path, unet, {**pair(unet), **sparse, f"{FLAT}.bias_values": torch.tensor([0.1, 0.2])})
    assert read(tmp_path, unet, {**pair(unet), **sparse, f"{FLAT}.bias_values": torch.zeros(2)}).notes == ()


def test_zeros_change_nothing_and_need_no_option(unet: UNet2DConditionModel, tmp_path: Path) -> None:
    zeros = {f"{NORM}{ending}": torch.zeros(16) for ending in (".diff", ".w_norm", ".b_norm", ".diff_b")}
    assert read(tmp_path, unet, {**pair(unet), **zeros}).notes == ()


def wide_unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8, in_channels=9, out_channels=4, block_out_channels=(16, 32), layers_per_block=1, cross_attention_dim=16,
        attention_head_dim=2, norm_num_groups=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    ).eval().requires_grad_(False)  # fmt: skip


@pytest.mark.parametrize("full", [False, True])
def test_a_first_convolution_of_the_latent_alone_fits_a_base_with_more_channels(full: bool, tmp_path: Path) -> None:
    unet, tensors = wide_unet(), {key: draw(*shape) for key, shape in CONV.items()}
    down, up = tensors.values()
    update = torch.einsum("or,rihw->oihw", up[:, :, 0, 0], down)
    adapter = read(
        tmp_path, unet, {"lora_unet_conv_in.diff": update} if full else {**tensors, "lora_unet_conv_in.alpha": torch.tensor(2.0)}
    )
    found = adapter.weights["conv_in"]
    product = np.einsum("or,rihw->oihw", found.b[:, :, 0, 0], found.a)
    np.testing.assert_allclose(product[:, :4], update.numpy(), rtol=1e-4, atol=1e-5)
    assert product.shape[1] == 9
    assert not product[:, 4:].any()
    assert adapter.notes[0] == "conv_in: trained on 4 of the base's 9 input channels, the others stay as they are"


@pytest.mark.parametrize("channels", [3, 5])
def test_other_channels_are_another_network(channels: int, tmp_path: Path) -> None:
    tensors = {key: draw(*(channels if size == 4 else size for size in shape)) for key, shape in CONV.items()}
    with pytest.raises(InputError, match=r"conv_in.lora_A: expected \(r, 9, 3, 3\)"):
        read(tmp_path, wide_unet(), tensors)


@pytest.mark.parametrize("holder", ["text_encoders.clip_l.transformer.", "clip_l.transformer.", "cond_stage_model.transformer."])
def test_names_of_the_text_encoder(holder: str, unet: UNet2DConditionModel, tmp_path: Path) -> None:
    """As ComfyUI, OneTrainer and one-file checkpoints call it."""
    torch.manual_seed(1)
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=8, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=8
        )
    ).eval()
    plain = strong_lora(text, TARGETS["text"])
    read_both = []
    for prefix in ("text_encoder.", holder):
        file = tmp_path / f"{len(read_both)}.safetensors"
        bare = {key.removeprefix("text_encoder.").removeprefix("text_model."): value for key, value in plain.items()}
        save_file({**pair(unet), **{f"{prefix}text_model.{key}": value.contiguous() for key, value in bare.items()}}, file)
        read_both.append(read_adapter("a", file, unet, text_encoder=text).weights)
    assert read_both[0].keys() == read_both[1].keys()
    assert len(read_both[0]) > 1
    for path, weights in read_both[0].items():
        assert (weights.b == read_both[1][path].b).all()
        assert (weights.a == read_both[1][path].a).all()
