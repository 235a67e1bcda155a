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


def with_clip_skip(base: Base, clip_skip: int) -> Base:
    """The base with a shorter text encoder; the weights are shared.

    Raises:
        UsageError: fewer than 1, or more than it has layers. UnsupportedError: a text encoder that is not CLIP's.
    """
    if clip_skip == 1:
        return base
    encoder: Any = share_copy(base.text_encoder)
    layers = _layers(encoder)
    if encoder.config.model_type != "clip_text_model" or layers is None:
        raise UnsupportedError(mismatch("--clip-skip", "CLIP's text encoder", encoder.config.model_type, "leave it out"))
    if not 1 <= clip_skip <= len(layers):
        raise UsageError(mismatch("--clip-skip", f"1 to {len(layers)}, 1 for all layers", clip_skip, "choose one in that range"))
    del layers[len(layers) + 1 - clip_skip :]
    return replace(base, text_encoder=encoder, text=msgspec.structs.replace(base.text, clip_skip=clip_skip))


def skipped_layers(text_encoder: Any) -> int:
    """How many layers fewer a text encoder has than its config says."""
    layers = _layers(text_encoder)
    return 0 if layers is None else max(int(text_encoder.config.num_hidden_layers) - len(layers), 0)


def _layers(text_encoder: Any) -> Any:
    """The layers of CLIP's text encoder; None of another."""
    text_model = getattr(text_encoder, "text_model", text_encoder)  # transformers before 5 have one more module around them
    return getattr(getattr(text_model, "encoder", None), "layers", None)
