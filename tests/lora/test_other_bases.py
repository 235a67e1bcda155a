"""Files for another base, and files that give a module twice: named in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from quad.core.errors import InputError
from quad.model.adapters import read_adapter
from tests.lora.test_malformed_files import PAIR, PEFT_PAIR, Q, refused, write

# -- other bases ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "base"),
    [
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", "SDXL"),
        ("text_encoder_2.text_model.encoder.layers.0.mlp.fc1.lora_A.weight", "SDXL"),
        ("lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q.lora_down.weight", "SDXL"),
        ("unet.down_blocks.1.attentions.0.transformer_blocks.9.attn1.to_q.lora_A.weight", "SDXL"),
        ("unet.add_embedding.linear_1.lora_A.weight", "SDXL"),
        ("transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight", "Flux"),
        ("lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight", "Flux"),
        ("transformer.transformer_blocks.0.attn.add_q_proj.lora_A.weight", "Stable Diffusion 3"),
        ("diffusion_model.joint_blocks.0.x_block.attn.qkv.lora_down.weight", "Stable Diffusion 3"),
        ("diffusion_model.blocks.0.self_attn.q.lora_A.weight", "Wan"),
        ("base_model.model.adaln_single.linear.lora_A.weight", "PixArt"),
        ("down_blocks.0.motion_modules.0.temporal_transformer.lora.down.weight", "AnimateDiff"),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", "a language model"),
        ("transformer.transformer_blocks.0.attn1.to_q.lora_A.weight", "a diffusion transformer"),
    ],
)
@pytest.mark.parametrize("allow_unused", [False, True])
def test_another_base_is_named_by_its_keys(key: str, base: str, allow_unused: bool, unet: UNet2DConditionModel, tmp_path: Path) -> None:
    tensors = {**PAIR, key: torch.ones(4, 32)}
    path = write(tmp_path / "a.safetensors", tensors) if not key.startswith("base_model") else tmp_path
    if path == tmp_path:
        write(tmp_path / "adapter_model.safetensors", {**PEFT_PAIR, key: torch.ones(4, 32)})
        (tmp_path / "adapter_config.json").write_text('{"r": 4}')
    refused(InputError, f"expected a LoRA for this base, found one for {base}", path, unet, allow_unused)
    refused(InputError, f"by key {key!r}", path, unet, allow_unused)


@pytest.mark.parametrize(
    ("width", "base"), [(768, "Stable Diffusion 1.x"), (1024, "Stable Diffusion 2.x"), (2048, "SDXL"), (77, "another base")]
)
def test_another_base_is_named_by_the_width_of_its_text(width: int, base: str, unet: UNet2DConditionModel, tmp_path: Path) -> None:
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    tensors = {f"unet.{name}.lora_A.weight": torch.ones(4, width), f"unet.{name}.lora_B.weight": torch.ones(32, 4)}
    path = write(tmp_path / "a.safetensors", tensors, {"ss_base_model_version": "sd_v9\n" + "x" * 900})
    refused(InputError, f"{name}: expected text features of width 16, as this base has, found (4, {width}): {base}", path, unet)
    refused(InputError, r'(its metadata says "sd_v9\nxxxx', path, unet)


# -- the same module twice --------------------------------------------------------------------------------------------------


def test_dialects_mix_as_long_as_their_modules_differ(unet: UNet2DConditionModel, tmp_path: Path) -> None:
    kohya = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_k"
    mixed = {**PAIR, f"{kohya}.lora_down.weight": torch.ones(2, 32), f"{kohya}.lora_up.weight": torch.ones(32, 2)}
    adapter = read_adapter("a", write(tmp_path / "a.safetensors", mixed), unet)
    assert adapter.weights.keys() == {Q, Q.replace("to_q", "to_k")}


ORIGINAL = "middle_block_1_transformer_blocks_0_attn1_to_q"


@pytest.mark.parametrize(
    "other",
    [
        f"lora_unet_{Q.replace('.', '_')}.lora_down.weight",
        f"{Q}.lora_A.weight",
        f"lora_unet_{ORIGINAL}.lora_down.weight",
        f"unet.{Q}.lora.down.weight",
    ],
)
def test_a_module_that_is_there_twice_is_refused_with_both_keys(other: str, unet: UNet2DConditionModel, tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", {**PAIR, other: torch.ones(4, 32)})
    for key in (other, f"unet.{Q}.lora_A.weight"):
        refused(InputError, repr(key), path, unet)
    refused(InputError, f"expected one down for {Q!r}", path, unet)
