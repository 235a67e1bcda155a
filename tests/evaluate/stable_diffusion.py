"""Small random models in the layout of Stable Diffusion's, saved by diffusers' own pipelines, with CLIP's tokenizer files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from transformers.utils import logging as transformers_logging

from tests.model.clip_vocabulary import write_clip_files

LENGTH, HIDDEN = 77, 16
PIPELINES: dict[int, Any] = {
    4: diffusers.StableDiffusionPipeline,
    8: diffusers.StableDiffusionInstructPix2PixPipeline,
    9: diffusers.StableDiffusionInpaintPipeline,
}


def _unet(channels: int, size: int) -> Any:
    """Two levels; its output has unit variance, and hears the prompt."""
    unet = diffusers.UNet2DConditionModel(
        sample_size=size // 8, in_channels=channels, out_channels=4, block_out_channels=(16, 32), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=HIDDEN, attention_head_dim=(2, 4), use_linear_projection=True, upcast_attention=True, norm_num_groups=8,
    )  # fmt: skip
    unet.conv_out.weight.mul_(6)
    for path, layer in unet.named_modules():
        if path.endswith(("attn2.to_v", "attn2.to_out.0")):
            layer.weight.mul_(4)
    return unet


def _vae() -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 16, 16), layers_per_block=1, norm_num_groups=4, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, scaling_factor=0.18215,
    )  # fmt: skip


def _text(tokens: int) -> transformers.CLIPTextModel:
    return transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=tokens, hidden_size=HIDDEN, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=LENGTH, hidden_act="gelu", bos_token_id=tokens - 2, eos_token_id=tokens - 1,
        )
    )  # fmt: skip


def scheduler(prediction: str = "epsilon") -> Any:
    """Stable Diffusion's own."""
    return diffusers.PNDMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, skip_prk_steps=True, steps_offset=1, set_alpha_to_one=False,
        prediction_type=prediction,
    )  # fmt: skip


def save_pipeline(root: Path, channels: int, sampler: Any, size: int = 64) -> Path:
    """A whole directory of a pipeline of this number of input channels."""
    transformers_logging.disable_progress_bar()
    torch.manual_seed(channels)
    tokens = write_clip_files(root / "clip", pad="<|endoftext|>")
    with torch.no_grad():
        parts = {"unet": _unet(channels, size), "vae": _vae(), "text_encoder": _text(tokens)}
        parts["text_encoder"].final_layer_norm.bias.add_(0.3)  # CLIP's hidden states have a mean; weights of words are measured on it
        parts["vae"].decoder.conv_out.weight.mul_(3)
        parts["vae"].encoder.conv_out.weight.mul_(3)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(root / "clip")
    extra = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    PIPELINES[channels](**parts, tokenizer=tokenizer, scheduler=sampler, **extra).save_pretrained(root / "model")
    shutil.rmtree(root / "model" / "tokenizer")
    (root / "clip").rename(root / "model" / "tokenizer")
    return root / "model"


def open_pipeline(directory: Path, kind: Any) -> Any:
    """diffusers' own pipeline of a kind on a saved directory, quiet."""
    pipe = kind.from_pretrained(directory, safety_checker=None, requires_safety_checker=False, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def index_of(directory: Path) -> dict[str, Any]:
    """`model_index.json`."""
    found: dict[str, Any] = json.loads((directory / "model_index.json").read_text())
    return found
