"""A transformer denoiser and its text encoder, called as a U-Net and CLIP are: what reads a base need not know which it has.

Module paths and weights are those of diffusers and transformers, so that LoRA files fit. Tokens that only fill a prompt up are left out of
attention, as PixArt is trained; which they are travels inside the hidden states: their rows are zeros (ADR 14).
Source: Chen et al. 2023 (PixArt-alpha).
"""

from __future__ import annotations

from typing import Any

import diffusers
import torch
import transformers
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput


class PixArtDenoiser(diffusers.PixArtTransformer2DModel):  # type: ignore[misc]
    """PixArt-alpha's transformer without micro-conditions, with a U-Net's signature; its learned variance is left out."""

    def forward(
        self, sample: Tensor, timestep: Tensor | float, encoder_hidden_states: Tensor, return_dict: bool = True
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """The noise in `sample`, `(batch, channels, h, w)`.

        Args:
            sample: `(batch, channels, h, w)`.
            timestep: `(1,)` or `(batch,)`, or one number.
            encoder_hidden_states: `(batch, tokens, hidden)`; rows of zeros are not attended to.
        """
        times = torch.as_tensor(timestep, dtype=torch.float32).reshape(-1).expand(len(sample))
        output = super().forward(
            sample,
            encoder_hidden_states=encoder_hidden_states,
            timestep=times,
            encoder_attention_mask=encoder_hidden_states.detach().abs().amax(-1) > 0,
            return_dict=False,
        )[0][:, : sample.shape[1]]
        return Transformer2DModelOutput(sample=output) if return_dict else (output,)


class MaskedT5(transformers.T5EncoderModel):  # type: ignore[misc]
    """T5's encoder that reads no padding, and says where it is: the rows of its tokens are zeros."""

    reads_padding = False

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.set_input_embeddings(self.shared)  # its config ties the two

    def forward(self, input_ids: Tensor) -> BaseModelOutput:
        """`last_hidden_state (batch, tokens, hidden)` of `input_ids (batch, tokens)`."""
        read = input_ids != self.config.pad_token_id
        hidden: Tensor = super().forward(input_ids, attention_mask=read).last_hidden_state
        return BaseModelOutput(last_hidden_state=hidden * read[..., None])
