"""Small random Stable Diffusions of each generation, as a directory of diffusers' own savers and as one file in the original names.

The names are written down here once more, from the training code's side; nothing of the reading is used.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

WIDTH, TOKENS = 64, 49408
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
AROUND = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OPEN_CLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
# As the models' own repositories have them.
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000, "trained_betas": None,
            "clip_sample": False, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1}  # fmt: skip
SCHEDULERS = {
    "epsilon": {"_class_name": "PNDMScheduler"},
    "edit": {"_class_name": "EulerAncestralDiscreteScheduler", "prediction_type": "epsilon"},
    "v": {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"},
}


@dataclass(frozen=True, kw_only=True)
class Small:
    """One small model's networks, and what tells its family."""

    unet: Any
    vae: Any
    text: Any
    second: bool
    scheduler: dict[str, Any]
    pipeline: str

    def tensors(self) -> dict[str, Tensor]:
        """All parts in original names."""
        return {
            **{f"model.diffusion_model.{name}": value for name, value in original_unet(self.unet).items()},
            **{f"first_stage_model.{name}": value for name, value in original_vae(self.vae).items()},
            **(original_open_clip(self.text) if self.second else original_clip(self.text)),
        }


def small(second: bool = False, channels: int = 4, velocity: bool = False, dtype: torch.dtype = torch.float32) -> Small:
    """A model of two levels whose numbers of heads follow the family's rule."""
    torch.manual_seed(3)
    unet = diffusers.UNet2DConditionModel(
        sample_size=96 if velocity else 64,
        in_channels=channels,
        block_out_channels=(WIDTH, 2 * WIDTH),
        cross_attention_dim=WIDTH,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=[1, 2] if second else 8,
        use_linear_projection=second,
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(32, 64),
        layers_per_block=2,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    config = transformers.CLIPTextConfig(
        vocab_size=TOKENS,
        hidden_size=WIDTH,
        intermediate_size=96,
        num_hidden_layers=23 if second else 2,
        num_attention_heads=1,
        max_position_embeddings=77,
        hidden_act="gelu" if second else "quick_gelu",
    )
    pipelines = {4: "StableDiffusionPipeline", 8: "StableDiffusionInstructPix2PixPipeline", 9: "StableDiffusionInpaintPipeline"}
    return Small(
        unet=unet.to(dtype),
        vae=vae.to(dtype),
        text=transformers.CLIPTextModel(config).to(dtype),
        second=second,
        scheduler={**SCHEDULERS["v" if velocity else "edit" if channels == 8 else "epsilon"], **SCHEDULE},
        pipeline=pipelines[channels],
    )


def save_directory(model: Small, root: Path, tokenizer: Path) -> Path:
    """In diffusers' layout.

    Args:
        tokenizer: a directory with CLIP's vocabulary.
    """
    transformers_logging.disable_progress_bar()
    for name, part in (("unet", model.unet), ("vae", model.vae), ("text_encoder", model.text)):
        part.save_pretrained(root / name)
    (root / "scheduler").mkdir()
    (root / "scheduler" / "scheduler_config.json").write_text(json.dumps(model.scheduler))
    shutil.copytree(tokenizer, root / "tokenizer")
    flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    words = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    special = {role: {"content": word, **flags} for role, word in words.items()}
    pad = {"pad_token": "!" if model.second else "<|endoftext|>"}
    (root / "tokenizer" / "special_tokens_map.json").write_text(json.dumps({**special, **pad}))
    (root / "model_index.json").write_text(f'{{"_class_name": "{model.pipeline}"}}')
    return root


def save_checkpoint(tensors: dict[str, Tensor], file: Path, metadata: dict[str, str] | None = None) -> Path:
    """One file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.detach().clone().contiguous() for name, value in tensors.items()}, file, metadata)
    return file


def _renamed(network: nn.Module, rules: list[tuple[str, Any]]) -> dict[str, Tensor]:
    names = {}
    for name, value in network.state_dict().items():
        new = name
        for pattern, replacement in rules:
            new, count = re.subn(pattern, replacement, new)
            if count:
                break
        names[new] = value
    return names


def original_unet(unet: Any) -> dict[str, Tensor]:
    """A U-Net in the training code's names."""
    step = unet.config.layers_per_block + 1

    def inside(rest: str) -> str:
        head, _, tail = rest.partition(".")
        return f"{RESNET[head]}.{tail}"

    def up(match: re.Match[str]) -> str:
        attentive = unet.config.up_block_types[int(match[1])].startswith("CrossAttn")
        return f"output_blocks.{step * int(match[1]) + step - 1}.{2 if attentive else 1}.conv"

    return _renamed(
        unet,
        [
            *((rf"^{re.escape(name)}\.", f"{new}.") for name, new in AROUND.items()),
            (r"^down_blocks\.(\d+)\.resnets\.(\d+)\.(.*)$", lambda m: f"input_blocks.{1 + step * int(m[1]) + int(m[2])}.0.{inside(m[3])}"),
            (r"^down_blocks\.(\d+)\.attentions\.(\d+)", lambda m: f"input_blocks.{1 + step * int(m[1]) + int(m[2])}.1"),
            (r"^down_blocks\.(\d+)\.downsamplers\.0\.conv", lambda m: f"input_blocks.{step * (int(m[1]) + 1)}.0.op"),
            (r"^mid_block\.resnets\.(\d+)\.(.*)$", lambda m: f"middle_block.{2 * int(m[1])}.{inside(m[2])}"),
            (r"^mid_block\.attentions\.0", "middle_block.1"),
            (r"^up_blocks\.(\d+)\.resnets\.(\d+)\.(.*)$", lambda m: f"output_blocks.{step * int(m[1]) + int(m[2])}.0.{inside(m[3])}"),
            (r"^up_blocks\.(\d+)\.attentions\.(\d+)", lambda m: f"output_blocks.{step * int(m[1]) + int(m[2])}.1"),
            (r"^up_blocks\.(\d+)\.upsamplers\.0\.conv", up),
        ],
    )


def original_vae(vae: Any) -> dict[str, Tensor]:
    """An autoencoder in the training code's names; its attention is of 1x1 convolutions there."""
    last = len(vae.config.block_out_channels) - 1
    tensors = {}
    for name, value in vae.state_dict().items():
        new = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        new = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2", new)
        new = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", new)
        new = re.sub(r"up_blocks\.(\d+)\.resnets\.(\d+)", lambda m: f"up.{last - int(m[1])}.block.{m[2]}", new)
        new = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{last - int(m[1])}.upsample", new)
        new = re.sub(r"mid_block\.resnets\.(\d+)", lambda m: f"mid.block_{int(m[1]) + 1}", new)
        if "mid_block.attentions.0." in new:
            for theirs, ours in ATTENTION.items():
                new = new.replace(f"mid_block.attentions.0.{theirs}.", f"mid.attn_1.{ours}.")
            value = value[:, :, None, None] if value.ndim == 2 else value
        tensors[new] = value
    return tensors


def original_clip(text: Any) -> dict[str, Tensor]:
    """CLIP's text encoder as Stable Diffusion 1.x holds it, with the constant that old files have."""
    names = {f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}": v for name, v in text.state_dict().items()}
    return {**names, "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None]}


def original_open_clip(text: Any) -> dict[str, Tensor]:
    """OpenCLIP's as Stable Diffusion 2.x holds it: queries, keys and values in one, and a last layer that nobody uses."""
    state = {name.removeprefix("text_model."): value for name, value in text.state_dict().items()}
    prefix = "cond_stage_model.model."
    tensors = {
        f"{prefix}token_embedding.weight": state["embeddings.token_embedding.weight"],
        f"{prefix}positional_embedding": state["embeddings.position_embedding.weight"],
        f"{prefix}text_projection": torch.randn(WIDTH, WIDTH),
        f"{prefix}logit_scale": torch.tensor(4.6),
        **{f"{prefix}ln_final.{leaf}": state[f"final_layer_norm.{leaf}"] for leaf in ("weight", "bias")},
    }
    for layer in range(24):
        below, block = f"encoder.layers.{min(layer, 22)}.", f"{prefix}transformer.resblocks.{layer}."
        scale = 1 if layer < 23 else 0
        for leaf in ("weight", "bias"):
            for theirs, original in OPEN_CLIP.items():
                tensors[f"{block}{original}.{leaf}"] = scale * state[f"{below}{theirs}.{leaf}"]
            parts = [state[f"{below}self_attn.{name}_proj.{leaf}"] for name in "qkv"]
            tensors[f"{block}attn.in_proj_{leaf}"] = scale * torch.cat(parts)
    return tensors
