"""The configs that diffusers and transformers need for a checkpoint's networks, read off the shapes of its tensors."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from quad.core.errors import InputError, mismatch
from quad.core.families import OneFileText
from quad.model.base.checkpoint.layout import UNET_PREFIX, ModelCheckpoint
from quad.model.base.stored_weights import StoredWeight

Weights = Mapping[str, StoredWeight]
HEAD_WIDTH = 64
_TIME_CHANNELS = 256  # of the embedding of each number of a size
_GROUPS = 32


def unet_config(checkpoint: ModelCheckpoint, sample_size: int) -> dict[str, Any]:
    """The U-Net's, as diffusers has it.

    Args:
        sample_size: latent pixels along one side that it was trained on.

    Raises:
        InputError: its tensors are not laid out as a U-Net's of these families.
    """
    weights, path = checkpoint.part(UNET_PREFIX), checkpoint.path
    with_op = _numbers(weights, r"input_blocks\.(\d+)\.0\.op\.weight")
    layers = min(with_op, default=0) - 1
    levels = len(with_op) + 1
    firsts = [1 + level * (layers + 1) for level in range(levels)]
    if layers < 1 or max(_numbers(weights, r"input_blocks\.(\d+)\."), default=0) != levels * (layers + 1) - 1:
        raise _unlike(path, UNET_PREFIX)
    widths = [_shape(path, weights, f"input_blocks.{first}.0.out_layers.3.weight")[0] for first in firsts]
    attentive = [f"input_blocks.{first}.1.proj_in.weight" in weights for first in firsts]
    keys = next((weight.shape for name, weight in weights.items() if name.endswith("attn2.to_k.weight")), None)
    linear = next((weight.ndim == 2 for name, weight in weights.items() if name.endswith("1.proj_in.weight")), False)
    if keys is None or len(keys) != 2:
        raise _unlike(path, UNET_PREFIX)
    sized = _size_fields(path, weights) if checkpoint.family.denoiser.sizes else {}
    return {
        **sized,
        "_class_name": "UNet2DConditionModel",
        "sample_size": sample_size,
        "in_channels": checkpoint.channels,
        "out_channels": _shape(path, weights, "out.2.weight")[0],
        "block_out_channels": widths,
        "layers_per_block": layers,
        "down_block_types": [_named(has, "CrossAttnDownBlock2D", "DownBlock2D") for has in attentive],
        "up_block_types": [_named(has, "CrossAttnUpBlock2D", "UpBlock2D") for has in reversed(attentive)],
        "cross_attention_dim": keys[1],
        "use_linear_projection": linear,
        "attention_head_dim": checkpoint.table.heads or [width // HEAD_WIDTH for width in widths],
        "norm_num_groups": _GROUPS,
    }


def _size_fields(path: Path, weights: Weights) -> dict[str, Any]:
    """Fields of a U-Net that is told the picture's size: depths of its attentions, and the width of what it is told.

    Raises:
        InputError: its tensors are not laid out so.
    """
    depths = {
        side: [
            len(_numbers(weights, rf"{side}\.{number}\.1\.transformer_blocks\.(\d+)\."))
            for number in sorted(_numbers(weights, rf"{side}\.(\d+)\."))
        ]
        for side in ("input_blocks", "output_blocks")
    }
    with_op = sorted(_numbers(weights, r"input_blocks\.(\d+)\.0\.op\.weight"))
    layers = with_op[0] - 1
    levels = len(with_op) + 1
    down = [depths["input_blocks"][1 + level * (layers + 1) : 1 + level * (layers + 1) + layers] for level in range(levels)]
    up = [depths["output_blocks"][level * (layers + 1) : (level + 1) * (layers + 1)] for level in range(levels)]
    middle = len(_numbers(weights, r"middle_block\.1\.transformer_blocks\.(\d+)\."))
    per_block = [max(block[0], 1) if len(set(block)) == 1 else block for block in down]
    mirrored = [max(block[0], 1) if len(set(block)) == 1 else block for block in up]
    fields: dict[str, Any] = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": _TIME_CHANNELS,
        "projection_class_embeddings_input_dim": _shape(path, weights, "label_emb.0.0.weight")[1],
        "mid_block_type": "UNetMidBlock2DCrossAttn" if middle else "UNetMidBlock2D",
        "transformer_layers_per_block": per_block,
    }
    if mirrored != per_block[::-1] or (middle and middle != per_block[-1]):
        fields["reverse_transformer_layers_per_block"] = mirrored
    return fields


def vae_config(path: Path, weights: Weights, scaling: float) -> dict[str, Any]:
    """An autoencoder's, as diffusers has it.

    Args:
        weights: by their original names, without a prefix.
        scaling: of its latents.

    Raises:
        InputError: they are no autoencoder's of these families.
    """
    levels = len(_numbers(weights, r"encoder\.down\.(\d+)\."))
    widths = [_shape(path, weights, f"encoder.down.{level}.block.0.conv2.weight")[0] for level in range(levels)]
    layers = len(_numbers(weights, r"encoder\.down\.0\.block\.(\d+)\."))
    if not widths:
        raise _unlike(path, "first_stage_model.")
    return {
        "_class_name": "AutoencoderKL",
        "block_out_channels": widths,
        "layers_per_block": layers,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "latent_channels": _shape(path, weights, "decoder.conv_in.weight")[1],
        "scaling_factor": scaling,
        "norm_num_groups": _GROUPS,
    }


def text_config(checkpoint: ModelCheckpoint, table: OneFileText) -> dict[str, Any]:
    """A text encoder's, as transformers has it.

    Raises:
        InputError: its tensors are not CLIP's or OpenCLIP's.
    """
    path, is_open_clip = checkpoint.path, table.spelling == "open-clip"
    weights = checkpoint.part(table.prefix)
    if is_open_clip:
        names = ("token_embedding.weight", "positional_embedding", "transformer.resblocks.0.mlp.c_fc.weight")
    else:
        weights = {name.removeprefix("text_model."): weight for name, weight in weights.items()}
        names = ("embeddings.token_embedding.weight", "embeddings.position_embedding.weight", "encoder.layers.0.mlp.fc1.weight")
    tokens, positions, inner = (_shape(path, weights, name) for name in names)
    layers = len(_numbers(weights, r"(?:transformer\.resblocks|encoder\.layers)\.(\d+)\."))
    return {
        "architectures": ["CLIPTextModel"],
        **({"projection_dim": tokens[1]} if is_open_clip else {}),
        "vocab_size": tokens[0],
        "hidden_size": tokens[1],
        "intermediate_size": inner[0],
        "num_hidden_layers": min(layers, table.layers or layers),
        "num_attention_heads": tokens[1] // HEAD_WIDTH,
        "max_position_embeddings": positions[0],
        "hidden_act": "gelu" if is_open_clip else "quick_gelu",
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
    }


def _named(has_attention: bool, cross: str, plain: str) -> str:
    return cross if has_attention else plain


def _numbers(names: Iterable[str], pattern: str) -> set[int]:
    """The numbers at one place in names."""
    match: Callable[[str], re.Match[str] | None] = re.compile(pattern).match
    return {int(matched[1]) for name in names if (matched := match(name))}


def _shape(path: Path, weights: Weights, name: str) -> tuple[int, ...]:
    """The shape of a tensor that has to be there, with two axes or more.

    Raises:
        InputError: it is not.
    """
    weight = weights.get(name)
    if weight is None or weight.ndim < 2:
        raise InputError(
            mismatch(f"{path}", f"a tensor {name} of two axes or more", "none", "give a whole checkpoint, or a diffusers directory")
        )
    return weight.shape


def _unlike(path: Path, prefix: str) -> InputError:
    expected = f"{prefix}* laid out as in Stable Diffusion 1.x or 2.x"
    return InputError(mismatch(f"{path}", expected, "another layout", "give a whole checkpoint, or a diffusers directory"))
