"""A pipeline of SDXL's structure with random weights at a share of its width and depth, and four LoRA files for it.

Half precision on disk, as such models are shipped. Head size, vocabulary and the VAE are those of the real model.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from benchmarks.rig.world import random_pair, write_tokenizer
from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from quad.model.slots.attention import add_sites

_SEED = 0
HEAD_CHANNELS, _TIME_CHANNELS = 64, 256
_ATTENTION, _TEXT = ("to_q", "to_k", "to_v", "to_out.0"), ("q_proj", "k_proj", "v_proj", "out_proj")


@dataclass(frozen=True)
class Shape:
    """Channels in whole heads of 64 and layers, at a share of SDXL's each."""

    width: float
    depth: float

    def heads(self, full: int) -> int:
        """Heads of a network that has `full` of them at full width."""
        return max(1, round(full * self.width))

    def layers(self, full: int) -> int:
        """Layers of what has `full` of them at full depth."""
        return max(1, round(full * self.depth))

    @property
    def text_widths(self) -> tuple[int, int]:
        """Of CLIP's and OpenCLIP's text encoder."""
        return self.heads(12) * HEAD_CHANNELS, self.heads(20) * HEAD_CHANNELS


def write_xl_pipeline(root: Path, shape: Shape) -> None:
    """The directory of a pipeline: 7 GB at full width and depth."""
    torch.manual_seed(_SEED)
    for folder, network in _networks(shape).items():
        network().half().save_pretrained(root / folder)  # type: ignore[operator]
    EulerDiscreteScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1, timestep_spacing="leading"
    ).save_pretrained(root / "scheduler")
    for folder, pad in (("tokenizer", None), ("tokenizer_2", "!")):
        write_tokenizer(root / folder, pad)
    (root / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True}))


def xl_unet_options(shape: Shape) -> dict[str, Any]:
    """Arguments of the U-Net's class."""
    heads, (clip_l, clip_g) = [shape.heads(full) for full in (5, 10, 20)], shape.text_widths
    return {
        "sample_size": 128,
        "block_out_channels": tuple(HEAD_CHANNELS * count for count in heads),
        "attention_head_dim": heads,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": [shape.layers(full) for full in (1, 2, 10)],
        "cross_attention_dim": clip_l + clip_g,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": _TIME_CHANNELS,
        "projection_class_embeddings_input_dim": clip_g + 6 * _TIME_CHANNELS,
    }


def _networks(shape: Shape) -> dict[str, Callable[[], nn.Module]]:
    clip_l, clip_g = shape.text_widths

    def unet() -> nn.Module:
        network: nn.Module = UNet2DConditionModel(**xl_unet_options(shape))
        return network

    def vae() -> nn.Module:
        network: nn.Module = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4, latent_channels=4,
            up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2, sample_size=1024, scaling_factor=0.13025,
        )  # fmt: skip
        return network

    def config(size: int, layers: int, activation: str) -> CLIPTextConfig:
        return CLIPTextConfig(
            vocab_size=49408, hidden_size=size, intermediate_size=4 * size, num_hidden_layers=layers, projection_dim=size,
            num_attention_heads=size // HEAD_CHANNELS, hidden_act=activation, bos_token_id=49406, eos_token_id=49407, pad_token_id=1,
        )  # fmt: skip

    return {
        "unet": unet,
        "vae": vae,
        "text_encoder": lambda: CLIPTextModel(config(clip_l, 1 + shape.layers(11), "quick_gelu")),
        "text_encoder_2": lambda: CLIPTextModelWithProjection(config(clip_g, 1 + shape.layers(31), "gelu")),
    }


def parameters(shape: Shape) -> int:
    """Numbers in all networks."""
    with torch.device("meta"):
        return sum(tensor.numel() for network in _networks(shape).values() for tensor in network().parameters())


def counted_networks(shape: Shape) -> dict[str, nn.Module]:
    """Component -> its networks without memory, with Sites."""
    with torch.device("meta"):
        networks: dict[str, Any] = {name: network() for name, network in _networks(shape).items()}
    vae = networks["vae"]
    parts: dict[str, nn.Module] = {
        "unet": networks["unet"],
        "text_encoder": nn.ModuleList([networks["text_encoder"], networks["text_encoder_2"]]),
        "vae_encoder": nn.ModuleDict({"encoder": vae.encoder, "quant_conv": vae.quant_conv}),
        "vae_decoder": nn.ModuleDict({"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv}),
    }
    for part in parts.values():
        add_sites(part)
    return parts


def write_xl_adapters(folder: Path, shape: Shape) -> dict[str, Path]:
    """Four LoRA files in half precision: of attention at rank 8, 16 and 32, one of these with both text encoders; one of all layers."""
    with torch.device("meta"):
        networks = {name: network() for name, network in _networks(shape).items()}
    folder.mkdir(parents=True, exist_ok=True)
    ranks = {"style": 8, "both": 16, "portrait": 32, "everywhere": 8}
    files = {name: folder / f"{name}.safetensors" for name in ranks}
    for name, rank in ranks.items():
        generator, tensors = torch.Generator().manual_seed(rank + len(name)), dict[str, Tensor]()
        parts = {"unet": _ATTENTION, **({"text_encoder": _TEXT, "text_encoder_2": _TEXT} if name == "both" else {})}
        for part, ends in parts.items():
            for path, layer in networks[part].named_modules():
                everywhere = name == "everywhere" and "blocks" in path and isinstance(layer, nn.Linear | nn.Conv2d)
                if everywhere or (isinstance(layer, nn.Linear) and path.endswith(ends)):
                    down, up = random_pair(layer, rank, generator)
                    tensors |= {f"{part}.{path}.lora_A.weight": down, f"{part}.{path}.lora_B.weight": up}
        save_file(tensors, files[name])
    return files
