"""A pipeline of Stable Diffusion 1.5's true shapes with random weights, and LoRA files of the world's dialects for it.

Half precision on disk, as such models are shipped. Times and sizes are those of the real model; its pictures mean nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

_SEED, _EFFECT = 0, 0.1
WIDTH = 320  # channels of the true U-Net's first blocks; another one is a multiple of `_GROUPS`
_GROUPS = 32  # that channels are normalized in
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
TEXT_LAYERS = ("q_proj", "k_proj", "v_proj", "out_proj")
RANKS = {"anime": 4, "pixel": 4, "clay": 8, "watercolour": 8, "ink": 16, "film": 16, "logo": 32, "portrait": 32, "lcm": 64, "world": 128}
EVERYWHERE = "lcm"  # LCM-LoRA's layout: every Linear and convolution of the blocks
WITH_TEXT = ("anime", "logo")


def denoiser(width: int = WIDTH) -> UNet2DConditionModel:
    """A U-Net with that many channels in its first blocks, and twice and four times as many behind them."""
    channels = (width, 2 * width, 4 * width, 4 * width)
    return UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8, block_out_channels=channels)


def write_pipeline(root: Path, width: int = WIDTH) -> None:
    """The directory of a pipeline, 2.1 GB at the true width."""
    torch.manual_seed(_SEED)
    _save(denoiser(width), root / "unet")
    _save(
        AutoencoderKL(
            block_out_channels=tuple(_GROUPS * max(1, channels * width // (WIDTH * _GROUPS)) for channels in (128, 256, 512, 512)),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
            sample_size=512,
        ),
        root / "vae",
    )
    _save(text_encoder(), root / "text_encoder")
    scheduler = PNDMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1)
    scheduler.save_pretrained(root / "scheduler")
    write_tokenizer(root / "tokenizer")
    (root / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))


def text_encoder() -> CLIPTextModel:
    """CLIP ViT-L/14's text half."""
    return CLIPTextModel(CLIPTextConfig(
        vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
        bos_token_id=49406, eos_token_id=49407, pad_token_id=1,
    ))  # fmt: skip


def _save(module: nn.Module, folder: Path) -> None:
    module.half().save_pretrained(folder)  # type: ignore[operator]


def write_tokenizer(folder: Path, pad: str | None = None) -> None:
    """CLIP's vocabulary without its merges: letters and word-final letters, then names that nobody writes, then the two marks.

    Args:
        pad: the token that fills a prompt up; None for its end.
    """
    letters = [_letter(byte) for byte in range(256)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    tokens += [f"\u00a4{i}" for i in range(49406 - len(tokens))] + ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    special = {"bos_token": tokens[-2], "eos_token": tokens[-1], "unk_token": tokens[-1], "pad_token": pad or tokens[-1]}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **special}))


def _letter(byte: int) -> str:
    """The printable stand-in of a byte in byte-level vocabularies; those without one count up from 256."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return chr(byte) if byte in plain else chr(256 + [b for b in range(256) if b not in plain].index(byte))


def write_adapters(folder: Path, width: int = WIDTH) -> dict[str, Path]:
    """Ten LoRA files of mixed rank, dialect and target, in half precision."""
    with torch.device("meta"):
        unet, text = denoiser(width), text_encoder()
    folder.mkdir(parents=True, exist_ok=True)
    return {name: _write_adapter(folder / f"{name}.safetensors", name, rank, unet, text) for name, rank in RANKS.items()}


def _write_adapter(file: Path, name: str, rank: int, unet: nn.Module, text: nn.Module) -> Path:
    generator = torch.Generator().manual_seed(len(name) + rank)
    tensors: dict[str, Tensor] = {}
    for path, layer in _targets(unet, name):
        kohya = f"lora_unet_{path.replace('.', '_')}"
        names = (f"{kohya}.lora_down.weight", f"{kohya}.lora_up.weight") if name == EVERYWHERE else (
            f"unet.{path}.lora_A.weight", f"unet.{path}.lora_B.weight")  # fmt: skip
        tensors |= dict(zip(names, random_pair(layer, rank, generator), strict=True))
        if name == EVERYWHERE:
            tensors[f"{kohya}.alpha"] = torch.tensor(float(rank))
    for path, layer in text.named_modules() if name in WITH_TEXT else ():
        if path.endswith(TEXT_LAYERS):
            stem = f"text_encoder.text_model.{path.removeprefix('text_model.')}"
            tensors |= dict(zip((f"{stem}.lora_A.weight", f"{stem}.lora_B.weight"), random_pair(layer, rank, generator), strict=True))
    save_file(tensors, file)
    return file


def _targets(unet: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    for path, layer in unet.named_modules():
        everywhere = name == EVERYWHERE and "blocks" in path and isinstance(layer, nn.Linear | nn.Conv2d)
        if everywhere or (isinstance(layer, nn.Linear) and path.endswith(ATTENTION)):
            yield path, layer


def random_pair(layer: nn.Module, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random matrices whose product has about `_EFFECT` of a fresh layer's own size."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    inputs, outputs = weight.shape[1:], weight.shape[0]
    fan_in = inputs.numel()
    down = torch.randn(rank, *inputs, generator=generator) / fan_in**0.5
    up = torch.randn(outputs, rank, *(1,) * (len(inputs) - 1), generator=generator) * (_EFFECT / (3 * rank) ** 0.5)
    return down.half(), up.half()
