"""A transformer denoiser and its text encoder, called as a U-Net and CLIP are: what reads a base need not know which it has.

Module paths and weights are those of diffusers and transformers, so that LoRA files fit. Tokens that only fill a prompt up are left out of
attention, as PixArt is trained; which they are travels inside the hidden states: their rows are zeros (ADR 14).
Source: Chen et al. 2023 (PixArt-alpha).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import msgspec
import torch
import transformers
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from quad.core.errors import UnsupportedError, mismatch
from quad.core.manifest import Beside
from quad.model.base.refusal import CHOOSE, SUPPORTED, with_family

PIPELINES = ("PixArtAlphaPipeline",)
GUIDANCE = 4.5
# Side of the latents at which PixArt is told the picture's size, where its config does not say.
_SIZED_SIDE = 128


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

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.set_input_embeddings(self.shared)  # its config ties the two

    def forward(self, input_ids: Tensor) -> BaseModelOutput:
        """`last_hidden_state (batch, tokens, hidden)` of `input_ids (batch, tokens)`."""
        read = input_ids != self.config.pad_token_id
        hidden: Tensor = super().forward(input_ids, attention_mask=read).last_hidden_state
        return BaseModelOutput(last_hidden_state=hidden * read[..., None])


def check_transformer(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse another transformer than PixArt-alpha's, or one with micro-conditions.

    Raises:
        UnsupportedError: it names the field of the config.
    """
    kind = str(config.get("_class_name"))
    if kind != "PixArtTransformer2DModel":
        raise UnsupportedError(mismatch(f"{folder}", SUPPORTED, with_family(kind), CHOOSE))
    sized = config.get("use_additional_conditions")
    if sized or (sized is None and config.get("sample_size", _SIZED_SIDE) == _SIZED_SIDE):
        condition = "use_additional_conditions (size and aspect ratio)"
        raise UnsupportedError(mismatch(f"{folder}", "a transformer conditioned on text alone", condition, CHOOSE))
    if config.get("attention_type", "default") != "default" or config.get("caption_channels") is None:
        attention = f"attention_type={config.get('attention_type')!r}, caption_channels={config.get('caption_channels')!r}"
        raise UnsupportedError(mismatch(f"{folder}", "plain attention to a projected caption", attention, CHOOSE))


def transformer_inputs(folder: Path, config: Mapping[str, Any], latent_channels: int) -> tuple[Beside, ...] | msgspec.UnsetType:
    """The inputs that the transformer reads beside the latent: none. It gives twice as many channels where it learned the variance too.

    Raises:
        UnsupportedError: it reads something beside the latent.
    """
    channels, outputs = int(config["in_channels"]), int(config["out_channels"])
    if channels != latent_channels or outputs not in (channels, 2 * channels):
        expected = f"{latent_channels} channels in, {latent_channels} or {2 * latent_channels} out"
        raise UnsupportedError(mismatch(f"{folder}", expected, f"{channels} in, {outputs} out", CHOOSE))
    return msgspec.UNSET
