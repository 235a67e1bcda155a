"""A tiny model directory of the reference's layout, random weights: enough to run every path, no quality to expect."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from transformers import CLIPTextConfig, CLIPTextModel

from quad.zoo import world
from quad.zoo.train.text import LENGTH, SPECIALS, new_tokenizer
from tests.runtime.conftest import tiny_bundle as tiny_bundle

STEPS = 2
TASKS = {
    "text-to-image": (None, "none", "ones", 2.0),
    "transform": ("transform", "image", "zeros", 1.5),
    "removal": ("removal", "masked-image", "input", 1.0),
    "sketch": ("sketch", "image", "ones", 1.0),
    "sticker": ("sticker", "image", "zeros", 1.0),
    "portrait": ("portrait", "image", "zeros", 1.0),
}
TARGETS = {
    "transform": (["to_q", "to_v"], 4),
    "removal": (["to_q", "conv1", "conv_in"], 3),
    "sketch": (["to_k", "to_out.0"], 2),
    "sticker": (["to_q", "to_k", "to_v"], 4),
    "portrait": (["proj_in"], 2),
}


def _unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=9,
        out_channels=4,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=2,
        norm_num_groups=8,
    )


def _text() -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(SPECIALS) + len(world.VOCABULARY),
        hidden_size=32,
        intermediate_size=64,
        projection_dim=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return CLIPTextModel(config)


def _vae() -> AutoencoderTiny:
    return AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(0, 1, 1),
        num_decoder_blocks=(1, 1, 0),
        latent_channels=4,
    )


def _adapter(unet: UNet2DConditionModel, folder: Path, targets: list[str], rank: int) -> None:
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, init_lora_weights=False)
    unet.add_adapter(config, "one")
    state = get_peft_model_state_dict(unet, adapter_name="one")
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=state, unet_lora_adapter_metadata=config.to_dict())
    unet.delete_adapters("one")


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built once a session."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("model")
    unet = _unet()
    unet.save_pretrained(root / "unet")
    _text().save_pretrained(root / "text_encoder")
    _vae().save_pretrained(root / "vae")
    DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
    ).save_pretrained(root / "scheduler")
    (root / "tokenizer").mkdir()
    new_tokenizer().save(str(root / "tokenizer" / "tokenizer.json"))
    tasks = {
        task: {"adapter": adapter, "sampler": {"kind": "ddim", "steps": STEPS}, "condition": condition, "mask": mask, "guidance": guidance}
        for task, (adapter, condition, mask, guidance) in TASKS.items()
    }
    world_file = {"latent_scale": [1.0, 0.9, 1.1, 1.2], "latent_shift": [0.0, 0.1, -0.1, 0.2], "size": 64, "tasks": tasks}
    (root / "toyland.json").write_text(json.dumps(world_file))
    for name, (targets, rank) in TARGETS.items():
        _adapter(unet, root / "adapters" / name, targets, rank)
    return root


@pytest.fixture(scope="session")
def adapter_files(model_dir: Path) -> dict[str, Path]:
    return {name: model_dir / "adapters" / name / "pytorch_lora_weights.safetensors" for name in TARGETS}
