"""A one-file checkpoint as the parts of a model: names are diffusers' own converters' business, weights stay where they lie."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers.loaders.single_file_utils import convert_ldm_clip_checkpoint, convert_ldm_unet_checkpoint, convert_open_clip_checkpoint

from quad.core.errors import InputError, mismatch
from quad.core.families import OneFileText, TextEncoder
from quad.core.slots import TEXT_ENCODER, UNET
from quad.lora.quote import listed
from quad.model.base.checkpoint.autoencoder import open_vae, original_vae
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
from quad.model.base.family import denoiser_layout, loaded_classes
from quad.model.base.load_component import StoredComponent, empty_module, fitted, quiet
from quad.model.base.parts import ModelParts
from quad.model.base.stored_weights import StoredWeight
from quad.model.base.text.stored_texts import joined_texts

Converted = Mapping[str, StoredWeight | None]  # diffusers' converters ask for tensors that need not be there
_DATA = Path(__file__).with_name("data")
_CLIP_PREFIX = "cond_stage_model.transformer."  # the converter's own
_KNOWN_PREFIXES = (UNET_PREFIX, VAE_PREFIX, EMA_PREFIX)
# Of the noise schedule, which follows from the family.
_BUFFERS = ("alphas_", "betas", "log_one_minus_", "lvlb_weights", "posterior_", "sqrt_", "v_pred", "ztsnr", "model_ema", "global_step")
# Of OpenCLIP, for pictures.
_BESIDE_TEXT = ("logit_scale", "attn_mask")


def checkpoint_parts(path: Path, vae: Path | None, prediction: str | None) -> ModelParts:
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
    encoders = [_text_encoder(checkpoint, *tables) for tables in zip(table.texts, family.texts, strict=True)]
    tokenizers = [checkpoint_tokenizer(path, encoder.config, text.pad) for encoder, text in zip(encoders, table.texts, strict=True)]
    layout = denoiser_layout(family, path, unet.config, LATENT_CHANNELS)
    return ModelParts(
        family=family,
        unet=unet,
        vae=_own_vae(checkpoint) if vae is None else open_vae(vae, family.vae_scaling),
        texts=joined_texts(path, family, encoders, tokenizers, family.zeros_for_empty),
        scheduler=_scheduler(checkpoint, layout.scheduler, kind),
        pipeline=layout.pipeline,
        notes=(*([note] if note else []), *_passed_over(checkpoint)),
    )


def _scheduler(checkpoint: ModelCheckpoint, name: str, kind: str) -> Path:
    """The scheduler's config of the family's own repository.

    Args:
        name: of the layout's.
        kind: what the U-Net predicts.
    """
    no_signal = "-ztsnr" if "ztsnr" in checkpoint.weights else ""
    names = (f"{name}-{kind}{no_signal}", f"{name}-{kind}", kind if name == EPSILON else name)
    return next(file for file in (_DATA / f"{name}.json" for name in names) if file.is_file())


def _unet(checkpoint: ModelCheckpoint, side: int) -> StoredComponent:
    config = unet_config(checkpoint, side)
    weights = {name: weight for name, weight in checkpoint.weights.items() if name.startswith(UNET_PREFIX)}
    with quiet():
        converted = convert_ldm_unet_checkpoint(dict(weights), config)
    (network,) = loaded_classes(checkpoint.family.denoiser.classes).values()
    return _component(checkpoint, network, config, _with_rest(converted, weights), UNET)


def _text_encoder(checkpoint: ModelCheckpoint, table: OneFileText, encoder: TextEncoder) -> StoredComponent:
    config, kind = text_config(checkpoint, table), next(iter(loaded_classes(encoder.classes).values()))
    if table.spelling == "clip":
        return _component(checkpoint, kind, config, _clip(checkpoint.part(table.prefix)), TEXT_ENCODER)
    weights = {
        name: weight
        for name, weight in checkpoint.weights.items()
        if name.startswith(table.prefix)
        and not name.endswith(_BESIDE_TEXT if encoder.pooled else (*_BESIDE_TEXT, "text_projection"))
        and not _beyond(name.removeprefix(table.prefix), config["num_hidden_layers"])
    }
    module = empty_module(checkpoint.path, kind, config)
    return _component(checkpoint, kind, config, convert_open_clip_checkpoint(module, weights, table.prefix), TEXT_ENCODER)


def _clip(weights: Mapping[str, StoredWeight]) -> Converted:
    """CLIP's text encoder as diffusers' converter reads it."""
    converted: Converted = convert_ldm_clip_checkpoint({f"{_CLIP_PREFIX}{name}": weight for name, weight in weights.items()})
    return converted


def _beyond(name: str, layers: int) -> bool:
    """Whether a tensor is of OpenCLIP's last layer, which some families leave out."""
    number = name.removeprefix("transformer.resblocks.").partition(".")[0]
    return number.isdecimal() and int(number) >= layers


def _own_vae(checkpoint: ModelCheckpoint) -> StoredComponent:
    if not checkpoint.holds(VAE_PREFIX):
        remedy = "name one: --vae FILE.safetensors or a directory"
        raise InputError(mismatch(f"{checkpoint.path}", "an autoencoder in the checkpoint (first_stage_model)", "none", remedy))
    return original_vae(checkpoint.file, checkpoint.part(VAE_PREFIX), checkpoint.family.vae_scaling)


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
