"""A U-Net that reads several chunks of tokens, and no more of them than a prompt has.

A graph has one number of tokens. Cross-attention of Stable Diffusion reads all of them, so a shorter prompt's context is filled up with
rows of zeros, which are left out of attention, as PixArt's padding is (ADR 14): the network answers as if they were not there.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import diffusers
import msgspec
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor

from quad.core.errors import UnsupportedError, UsageError, mismatch
from quad.model.base.modules import share_copy
from quad.model.base.open import Base
from quad.model.base.text_time_unet import TextTimeUNet

# 8 chunks are 600 tokens; nobody's prompt has more, and each costs.
MOST_CHUNKS = 8


class PaddedContextUNet(diffusers.UNet2DConditionModel):  # type: ignore[misc]
    """A U-Net with a U-Net's signature that does not attend to rows of zeros."""

    def forward(
        self, sample: Tensor, timestep: Tensor | float, encoder_hidden_states: Tensor, return_dict: bool = True, **more: Any
    ) -> UNet2DConditionOutput | tuple[Tensor]:
        """As the U-Net's own.

        Args:
            encoder_hidden_states: `(batch, tokens, hidden)`; rows of zeros are not attended to.
        """
        read = encoder_hidden_states.detach().abs().amax(-1) > 0
        output: UNet2DConditionOutput | tuple[Tensor] = super().forward(
            sample, timestep, encoder_hidden_states, encoder_attention_mask=read, return_dict=return_dict, **more
        )
        return output


class PaddedTextTimeUNet(TextTimeUNet, PaddedContextUNet):
    """The same of one that reads more than words in its rows: the others are taken off first."""


_PADDED = {diffusers.UNet2DConditionModel: PaddedContextUNet, TextTimeUNet: PaddedTextTimeUNet}


def with_prompt_chunks(base: Base, chunks: int) -> Base:
    """The base with a U-Net for prompts of up to so many chunks; the weights are shared.

    Raises:
        UsageError: none, or more than 8. UnsupportedError: a model that reads no chunks.
    """
    if chunks == 1:
        return base
    if not 1 <= chunks <= MOST_CHUNKS:
        raise UsageError(mismatch("--prompt-chunks", f"1 to {MOST_CHUNKS}", chunks, "choose one in that range"))
    if type(base.unet) not in _PADDED:
        kind = type(base.unet).__name__
        raise UnsupportedError(mismatch("--prompt-chunks", "a U-Net that reads CLIP's hidden states", kind, "leave it out"))
    unet: Any = share_copy(base.unet)
    unet.__class__ = _PADDED[type(base.unet)]  # the same parameters and config; only the way that it is called is another
    return replace(base, unet=unet, text=msgspec.structs.replace(base.text, chunks=chunks))
