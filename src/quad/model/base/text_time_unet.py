"""A U-Net that reads the prompt as a whole and the picture's size beside the prompt's words, called as one that does not.

Both stand in rows behind the words' hidden states: one input, as every U-Net here has, so that calls, probes, graphs and engines are the
same. Each size comes as the sinusoids that diffusers would make of it, computed where the caller is: they lie in [-1, 1], while a size
itself would spend the range of an integer input on two numbers (ADR 48).
Source: Podell et al. 2023 (SDXL), section 2.2.
"""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor

from quad.core.manifest import SIZE_NUMBERS
from quad.core.ports import Sinusoid


class TextTimeUNet(diffusers.UNet2DConditionModel):  # type: ignore[misc]
    """SDXL's U-Net with the signature of one that reads words alone."""

    def forward(
        self, sample: Tensor, timestep: Tensor | float, encoder_hidden_states: Tensor, return_dict: bool = True, **more: Any
    ) -> UNet2DConditionOutput | tuple[Tensor]:
        """As the U-Net's own.

        Args:
            encoder_hidden_states: `(batch, tokens + pooled rows + size rows, hidden)`.
        """
        width = encoder_hidden_states.shape[2]
        pooled_rows, size_rows = -(-self.pooled // width), -(-self.size_channels // width)
        tokens = encoder_hidden_states.shape[1] - pooled_rows - size_rows
        states, pooled, sizes = encoder_hidden_states.split([tokens, pooled_rows, size_rows], dim=1)
        conditions = torch.cat([pooled.flatten(1)[:, : self.pooled], sizes.flatten(1)[:, : self.size_channels]], dim=1)
        output: UNet2DConditionOutput | tuple[Tensor] = super().forward(
            sample, timestep, states, added_cond_kwargs={"conditions": conditions}, return_dict=return_dict, **more
        )
        return output

    def get_aug_embed(self, emb: Tensor, encoder_hidden_states: Tensor, added_cond_kwargs: dict[str, Tensor]) -> Tensor:
        """The embedding of prompt and sizes, which is added to the timestep's."""
        embedded: Tensor = self.add_embedding(added_cond_kwargs["conditions"].to(emb.dtype))
        return embedded

    @property
    def size_channels(self) -> int:
        """Numbers that say the picture's size."""
        return SIZE_NUMBERS * int(self.config.addition_time_embed_dim)

    @property
    def pooled(self) -> int:
        """Numbers of the prompt as a whole."""
        return int(self.config.projection_class_embeddings_input_dim) - self.size_channels

    @property
    def sinusoid(self) -> Sinusoid:
        """The embedding of each of the six numbers of a size."""
        config = self.config
        channels, cosine_first = int(config.addition_time_embed_dim), bool(config.flip_sin_to_cos)
        return Sinusoid(channels=channels, cosine_first=cosine_first, shift=float(config.freq_shift))
