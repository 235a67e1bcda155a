"""A one-file checkpoint as the parts of a model: names are diffusers' own converters' business, weights stay where they lie."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import transformers
from diffusers.loaders.single_file_utils import convert_ldm_clip_checkpoint, convert_ldm_unet_checkpoint, convert_open_clip_checkpoint

from quad.core.errors import InputError, mismatch
from quad.core.families import OneFileText
from quad.core.slots import TEXT_ENCODER, UNET
from quad.lora.quote import listed
from quad.model.base.checkpoint.autoencoder import original_vae
from quad.model.base.checkpoint.clip_vocabulary import checkpoint_tokenizer
from quad.model.base.checkpoint.configs import text_config, unet_config
from quad.model.base.checkpoint.layout import (
    EMA_PREFIX,
    LATENT_CHANNELS,
    UNET_PREFIX,
    VAE_PREFIX,
    ModelCheckpoint,
    open_checkpoint,
)
from quad.model.base.checkpoint.prediction import EPSILON, VELOCITY, prediction_of
from quad.model.base.family import denoiser_layout
from quad.model.base.load_component import StoredComponent, empty_module, fitted, quiet
from quad.model.base.parts import ModelParts
from quad.model.base.stored_weights import StoredWeight

Converted = Mapping[str, StoredWeight | None]  # diffusers' converters ask for tensors that need not be there
_DATA = Path(__file__).with_name("data")
_KNOWN_PREFIXES = (UNET_PREFIX, VAE_PREFIX, EMA_PREFIX)
# Of the noise schedule, which follows from the family.
_BUFFERS = ("alphas_", "betas", "log_one_minus_", "lvlb_weights", "posterior_", "sqrt_", "v_pred", "ztsnr", "model_ema", "global_step")
# Of OpenCLIP, for pictures.
_BESIDE_TEXT = ("text_projection", "logit_scale", "attn_mask")


def checkpoint_parts(path: Path, vae: StoredComponent | None, prediction: str | None) -> ModelParts:
    """The parts of a checkpoint.

    Args:
        vae: in place of the checkpoint's own; it may have none.
        prediction: `epsilon` or `v`; None for what the file tells.

    Raises:
        InputError: pickled, truncated, a LoRA, or parts that are missing. UnsupportedError: another family, or weights that are no floats.
        UsageError: `prediction` is neither.
    """
    checkpoint = open_checkpoint(path)
    kind, note = prediction_of(checkpoint, prediction)
    family, table = checkpoint.family, checkpoint.table
    unet = _unet(checkpoint, table.velocity_side if kind == VELOCITY else table.side)
    (text_table,) = table.texts
    encoder = _text_encoder(checkpoint, text_table)
    tokenizer, text = checkpoint_tokenizer(path, encoder.config, text_table.pad)
    layout = denoiser_layout(family, path, unet.config, LATENT_CHANNELS)
    return ModelParts(
        family=family,
        unet=unet,
        vae=vae or _own_vae(checkpoint),
        text_encoder=encoder,
        tokenizer=tokenizer,
        text=text,
        scheduler=_DATA / f"{kind if layout.scheduler == EPSILON else layout.scheduler}.json",
        pipeline=layout.pipeline,
        notes=(*([note] if note else []), *_passed_over(checkpoint)),
    )


def _unet(checkpoint: ModelCheckpoint, side: int) -> StoredComponent:
    config = unet_config(checkpoint, side)
    weights = {name: weight for name, weight in checkpoint.weights.items() if name.startswith(UNET_PREFIX)}
    with quiet():
        converted = convert_ldm_unet_checkpoint(dict(weights), config)
    return _component(checkpoint, diffusers.UNet2DConditionModel, config, _with_rest(converted, weights), UNET)


def _text_encoder(checkpoint: ModelCheckpoint, table: OneFileText) -> StoredComponent:
    config, kind = text_config(checkpoint, table), transformers.CLIPTextModel
    if table.spelling == "clip":
        return _component(checkpoint, kind, config, convert_ldm_clip_checkpoint(dict(checkpoint.weights)), TEXT_ENCODER)
    weights = {
        name: weight
        for name, weight in checkpoint.weights.items()
        if name.startswith(table.prefix)
        and not name.endswith(_BESIDE_TEXT)
        and not _beyond(name.removeprefix(table.prefix), config["num_hidden_layers"])
    }
    module = empty_module(checkpoint.path, kind, config)
    return _component(checkpoint, kind, config, convert_open_clip_checkpoint(module, weights, table.prefix), TEXT_ENCODER)


def _beyond(name: str, layers: int) -> bool:
    """Whether a tensor is of OpenCLIP's last layer, which some families leave out."""
    number = name.removeprefix("transformer.resblocks.").partition(".")[0]
    return number.isdecimal() and int(number) >= layers


def _own_vae(checkpoint: ModelCheckpoint) -> StoredComponent:
    if not checkpoint.holds(VAE_PREFIX):
        remedy = "name one: --vae FILE.safetensors or a directory"
        raise InputError(mismatch(f"{checkpoint.path}", "an autoencoder in the checkpoint (first_stage_model)", "none", remedy))
    return original_vae(checkpoint.file, checkpoint.part(VAE_PREFIX), checkpoint.table.vae_scaling)


def _component(
    checkpoint: ModelCheckpoint, kind: Any, config: dict[str, Any], converted: Mapping[str, StoredWeight | None], part: str
) -> StoredComponent:
    stored = {name: weight for name, weight in converted.items() if weight is not None}
    return fitted(empty_module(checkpoint.path, kind, config), stored, [checkpoint.file], part)


def _with_rest(converted: Converted, weights: Mapping[str, StoredWeight]) -> Converted:
    """Converted tensors, and under their own names those that no converter took: they have no place, and are refused."""
    converted_keys = {weight.key for weight in converted.values() if weight is not None}
    return {**converted, **{name: weight for name, weight in weights.items() if weight.key not in converted_keys}}


def _passed_over(checkpoint: ModelCheckpoint) -> list[str]:
    """Notes on tensors that no part takes."""
    notes = ["the running averages (EMA) in the checkpoint are passed over"] if checkpoint.holds(EMA_PREFIX) else []
    known = (*_KNOWN_PREFIXES, *(text.prefix for text in checkpoint.table.texts), *_BUFFERS)
    others = sorted(name for name in checkpoint.weights if not name.startswith(known))
    return [*notes, *([f"the checkpoint: {len(others)} tensors of no part are passed over: {listed(others)}"] if others else [])]
