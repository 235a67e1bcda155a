"""Small random SDXLs saved by diffusers' own pipelines: two text encoders, sizes, and a U-Net of other depths on each level."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from transformers.utils import logging as transformers_logging

from tests.checkpoints import OPEN_CLIP, original_unet, original_vae
from tests.model.clip_vocabulary import write_clip_files

LENGTH, WIDTHS, POOLED, TIME_CHANNELS = 77, (16, 24), 20, 8
PIPELINES: dict[int, Any] = {
    4: diffusers.StableDiffusionXLPipeline,
    8: diffusers.StableDiffusionXLInstructPix2PixPipeline,
    9: diffusers.StableDiffusionXLInpaintPipeline,
}


def unet(channels: int = 4, size: int = 64, **changes: Any) -> Any:
    """Two levels, one block deep and two; its output has unit variance, and hears the prompt, its whole and the sizes."""
    made = diffusers.UNet2DConditionModel(
        **{
            "sample_size": size // 8, "in_channels": channels, "out_channels": 4, "block_out_channels": (16, 32), "layers_per_block": 1,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2), "cross_attention_dim": sum(WIDTHS), "attention_head_dim": (2, 4),
            "use_linear_projection": True, "norm_num_groups": 8, "addition_embed_type": "text_time",
            "addition_time_embed_dim": TIME_CHANNELS, "projection_class_embeddings_input_dim": POOLED + 6 * TIME_CHANNELS, **changes,
        }
    )  # fmt: skip
    with torch.no_grad():
        made.conv_out.weight.mul_(6)
        for path, layer in made.named_modules():
            if path.endswith(("attn2.to_v", "attn2.to_out.0", "add_embedding.linear_2")):
                layer.weight.mul_(4)
        made.add_embedding.linear_1.weight[:, POOLED:].mul_(30)
    return made


def vae() -> Any:
    """It has SDXL's scaling, and its word that it overflows in half precision."""
    made = diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 16, 16), layers_per_block=1, norm_num_groups=4, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, scaling_factor=0.13025, force_upcast=True,
    )  # fmt: skip
    with torch.no_grad():
        made.decoder.conv_out.weight.mul_(3)
        made.encoder.conv_out.weight.mul_(3)
    return made


def texts(tokens: int) -> tuple[Any, Any]:
    """CLIP's two of three layers each, the second with a projection."""
    kinds = (transformers.CLIPTextModel, transformers.CLIPTextModelWithProjection)
    made = []
    for kind, width, activation in zip(kinds, WIDTHS, ("quick_gelu", "gelu"), strict=True):
        config = transformers.CLIPTextConfig(
            vocab_size=tokens, hidden_size=width, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
            max_position_embeddings=LENGTH, hidden_act=activation, projection_dim=POOLED, bos_token_id=tokens - 2, eos_token_id=tokens - 1,
        )  # fmt: skip
        made.append(kind(config))
        with torch.no_grad():
            for path, layer in made[-1].named_modules():
                if path.endswith(("fc2", "out_proj", "text_projection")):
                    layer.weight.mul_(20)
    return made[0], made[1]


def scheduler(**changes: Any) -> Any:
    """SDXL's own."""
    return diffusers.EulerDiscreteScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1, timestep_spacing="leading", **changes
    )


def save_xl(root: Path, channels: int = 4, size: int = 64, sampler: Any = None, **unet_changes: Any) -> Path:
    """A whole directory of a pipeline of this number of input channels."""
    transformers_logging.disable_progress_bar()
    torch.manual_seed(channels)
    folders = {"tokenizer": "<|endoftext|>", "tokenizer_2": "!"}
    first, second = texts(min(write_clip_files(root / name, pad=pad) for name, pad in folders.items()))
    tokenizers = {name: transformers.CLIPTokenizer.from_pretrained(root / name, pad_token=pad) for name, pad in folders.items()}
    parts = {"unet": unet(channels, size, **unet_changes), "vae": vae(), "text_encoder": first, "text_encoder_2": second}
    made = PIPELINES[channels](**parts, **tokenizers, scheduler=sampler or scheduler(), add_watermarker=False)
    made.save_pretrained(root / "model")
    for name in folders:
        shutil.rmtree(root / "model" / name)
        (root / name).rename(root / "model" / name)
    return root / "model"


def one_file_parts(channels: int = 4) -> dict[str, Any]:
    """Networks whose numbers of heads and channels follow SDXL's rules, as a one-file checkpoint needs them."""
    torch.manual_seed(5)
    network = diffusers.UNet2DConditionModel(
        sample_size=128, in_channels=channels, out_channels=4, block_out_channels=(64, 128, 128), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), transformer_layers_per_block=[1, 1, 2],
        cross_attention_dim=192, attention_head_dim=[1, 2, 2], use_linear_projection=True, addition_embed_type="text_time",
        addition_time_embed_dim=256, projection_class_embeddings_input_dim=128 + 6 * 256,
    )  # fmt: skip
    autoencoder = diffusers.AutoencoderKL(
        block_out_channels=(32, 64), layers_per_block=1, latent_channels=4, scaling_factor=0.13025,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    encoders = []
    for kind, width in ((transformers.CLIPTextModel, 64), (transformers.CLIPTextModelWithProjection, 128)):
        config = transformers.CLIPTextConfig(
            vocab_size=49408, hidden_size=width, intermediate_size=96, num_hidden_layers=3, num_attention_heads=width // 64,
            max_position_embeddings=77, hidden_act="quick_gelu" if width == 64 else "gelu", projection_dim=width,
        )  # fmt: skip
        encoders.append(kind(config))
    return {"unet": network, "vae": autoencoder, "text_encoder": encoders[0], "text_encoder_2": encoders[1]}


def original_tensors(parts: dict[str, Any]) -> dict[str, torch.Tensor]:
    """All parts in the training code's (SGM's) names."""
    unet_names = {
        name.replace("add_embedding.linear_1", "label_emb.0.0").replace("add_embedding.linear_2", "label_emb.0.2"): value
        for name, value in original_unet(parts["unet"]).items()
    }
    first = {f"conditioner.embedders.0.transformer.text_model.{name}": value for name, value in parts["text_encoder"].state_dict().items()}
    state = {name.removeprefix("text_model."): value for name, value in parts["text_encoder_2"].state_dict().items()}
    prefix = "conditioner.embedders.1.model."
    second = {
        f"{prefix}token_embedding.weight": state["embeddings.token_embedding.weight"],
        f"{prefix}positional_embedding": state["embeddings.position_embedding.weight"],
        f"{prefix}text_projection": state["text_projection.weight"].T,
        f"{prefix}logit_scale": torch.tensor(4.6),
        **{f"{prefix}ln_final.{leaf}": state[f"final_layer_norm.{leaf}"] for leaf in ("weight", "bias")},
    }
    for layer in range(3):
        below, block = f"encoder.layers.{layer}.", f"{prefix}transformer.resblocks.{layer}."
        for leaf in ("weight", "bias"):
            second |= {f"{block}{original}.{leaf}": state[f"{below}{name}.{leaf}"] for name, original in OPEN_CLIP.items()}
            second[f"{block}attn.in_proj_{leaf}"] = torch.cat([state[f"{below}self_attn.{name}_proj.{leaf}"] for name in "qkv"])
    return {
        **{f"model.diffusion_model.{name}": value for name, value in unet_names.items()},
        **{f"first_stage_model.{name}": value for name, value in original_vae(parts["vae"]).items()},
        **first,
        **second,
    }
