"""A CLIP text encoder without its last layers: "clip skip" as A1111 and model cards count it, 1 for all layers, 2 for all but the last.

The last layer norm follows whatever layer is then the last, as in A1111 and diffusers, whose `clip_skip` is one less than this number.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec

from quad.core.errors import UnsupportedError, UsageError, mismatch
from quad.model.base.modules import share_copy
from quad.model.base.open import Base
from quad.model.base.text.clip_pair import AS_TRAINED, ClipPair, text_model


def with_clip_skip(base: Base, clip_skip: int) -> Base:
    """The base with a shorter text encoder; the weights are shared.

    Raises:
        UsageError: fewer than 1, or more than it has layers. UnsupportedError: a text encoder that is not CLIP's.
    """
    if clip_skip == 1:
        return base
    encoder: Any = share_copy(base.text_encoder)
    if isinstance(encoder, ClipPair):
        return _pair_with_clip_skip(base, encoder, clip_skip)
    layers = _layers(encoder)
    if encoder.config.model_type != "clip_text_model" or layers is None:
        raise UnsupportedError(mismatch("--clip-skip", "CLIP's text encoder", encoder.config.model_type, "leave it out"))
    if not 1 <= clip_skip <= len(layers):
        raise UsageError(mismatch("--clip-skip", f"1 to {len(layers)}, 1 for all layers", clip_skip, "choose one in that range"))
    del layers[len(layers) + 1 - clip_skip :]
    return replace(base, text_encoder=encoder, text=msgspec.structs.replace(base.text, clip_skip=clip_skip))


def _pair_with_clip_skip(base: Base, pair: ClipPair, clip_skip: int) -> Base:
    """The same of two text encoders, whose states are never those of the last layer: 1 and 2 are as they were trained.

    Raises:
        UsageError: more than the first one has.
    """
    most = len(text_model(pair.clip_l).encoder.layers) + AS_TRAINED - 1
    if not 1 <= clip_skip <= most:
        raise UsageError(mismatch("--clip-skip", f"1 to {most}, 1 and 2 as the model was trained", clip_skip, "choose one in that range"))
    if clip_skip <= AS_TRAINED:
        return base
    shorter = ClipPair(pair.clip_l, pair.clip_g, end=pair.end, pads=pair.pads, layer=clip_skip)
    return replace(base, text_encoder=shorter.eval(), text=msgspec.structs.replace(base.text, clip_skip=clip_skip))


def skipped_layers(text_encoder: Any) -> int:
    """How many layers fewer a text encoder has than its config says."""
    if isinstance(text_encoder, ClipPair):
        return text_encoder.layer - 1
    layers = _layers(text_encoder)
    return 0 if layers is None else max(int(text_encoder.config.num_hidden_layers) - len(layers), 0)


def _layers(text_encoder: Any) -> Any:
    """The layers of CLIP's text encoder; None of another."""
    return getattr(getattr(text_model(text_encoder), "encoder", None), "layers", None)
