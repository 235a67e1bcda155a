"""The names of modules in files: the original code's numbering, and the grammar of keys."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from quad.lora.keys import LoraKey, parse_key
from quad.lora.module_names import network_names, original_names

ATTENTION = "transformer_blocks.0.attn1.to_q"


def paths_of(network: nn.Module) -> list[str]:
    return [path for path, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]


@pytest.fixture(scope="module")
def sd15_paths() -> list[str]:
    with torch.device("meta"):
        return paths_of(UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8))


@pytest.mark.parametrize(
    ("ours", "original"),
    [  # as in Stable Diffusion 1.5's published checkpoint
        ("conv_in", "input_blocks.0.0"),
        (f"down_blocks.0.attentions.0.{ATTENTION}", f"input_blocks.1.1.{ATTENTION}"),
        ("down_blocks.0.resnets.1.conv1", "input_blocks.2.0.in_layers.2"),
        ("down_blocks.0.downsamplers.0.conv", "input_blocks.3.0.op"),
        ("down_blocks.1.resnets.0.conv_shortcut", "input_blocks.4.0.skip_connection"),
        ("down_blocks.2.resnets.1.time_emb_proj", "input_blocks.8.0.emb_layers.1"),
        ("down_blocks.3.resnets.1.conv2", "input_blocks.11.0.out_layers.3"),
        ("mid_block.resnets.0.conv1", "middle_block.0.in_layers.2"),
        (f"mid_block.attentions.0.{ATTENTION}", f"middle_block.1.{ATTENTION}"),
        ("mid_block.resnets.1.conv2", "middle_block.2.out_layers.3"),
        ("up_blocks.0.resnets.0.conv1", "output_blocks.0.0.in_layers.2"),
        ("up_blocks.0.upsamplers.0.conv", "output_blocks.2.1.conv"),
        ("up_blocks.1.upsamplers.0.conv", "output_blocks.5.2.conv"),
        (f"up_blocks.3.attentions.2.{ATTENTION}", f"output_blocks.11.1.{ATTENTION}"),
        ("time_embedding.linear_2", "time_embed.2"),
        ("conv_out", "out.2"),
    ],
)
def test_original_names(ours: str, original: str, sd15_paths: list[str]) -> None:
    assert original_names(sd15_paths)[ours] == original


def test_every_layer_has_one_original_name(sd15_paths: list[str]) -> None:
    names = original_names(sd15_paths)
    assert names.keys() == set(sd15_paths)
    assert len(set(names.values())) == len(sd15_paths)


def test_other_networks_have_none() -> None:
    assert original_names(["transformer_blocks.0.attn1.to_q", "proj_out", "encoder.layers.0.self_attn.q_proj"]) == {}


def test_a_spelling_of_two_modules_is_none() -> None:
    names = network_names(["a.b_c", "a_b.c", "d.e"])
    assert names.find(LoraKey(path="a_b_c", role="down", flat=True, component="unet")) is None
    assert names.find(LoraKey(path="a.b_c", role="down", component="unet")) == "a.b_c"
    assert names.find(LoraKey(path="d_e", role="down", flat=True, component="unet")) == "d.e"


@pytest.mark.parametrize(
    ("key", "want"),
    [
        ("unet.conv_in.lora_A.weight", LoraKey(path="conv_in", role="down", flat=False, component="unet")),
        ("base_model.model.unet.conv_in.lora_B.weight", LoraKey(path="conv_in", role="up", flat=False, component="unet")),
        ("conv_in.lora_A.ink.weight", LoraKey(path="conv_in", role="down")),
        (
            "lora_te_text_model_encoder_layers_0_mlp_fc1.alpha",
            LoraKey(path="text_model_encoder_layers_0_mlp_fc1", role="alpha", flat=True, component="text_encoder"),
        ),
        (
            "text_encoder.text_model.a.self_attn.to_out_lora.up.weight",
            LoraKey(path="text_model.a.self_attn.out_proj", role="up", flat=False, component="text_encoder"),
        ),
        ("mid.attn1.processor.to_out_lora.down.weight", LoraKey(path="mid.attn1.to_out.0", role="down")),
        ("model.diffusion_model.out.2.lora_up.weight", LoraKey(path="out.2", role="up")),
        ("lora_unet_conv_in.hada_t1", LoraKey(path="conv_in", role="hada_t1", flat=True, component="unet")),
        ("unet.conv_in.lora_magnitude_vector.default.weight", LoraKey(path="conv_in", role="magnitude", flat=False, component="unet")),
        ("lora_unet_conv_in.lokr_t1", None),
        ("unet.conv_in.weight", None),
        ("", None),
    ],
)
def test_the_grammar_of_keys(key: str, want: LoraKey | None) -> None:
    assert parse_key(key) == want
