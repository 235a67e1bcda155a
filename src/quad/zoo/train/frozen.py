"""A trained model whose weights stand still while adapters are learnt on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from tokenizers import Tokenizer
from torch import Tensor

from quad.zoo.train.base import Words
from quad.zoo.train.cache import encode_pictures
from quad.zoo.train.text import encode


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """The networks and numbers of a model directory.

    Args:
        texts: text encoders by their names in LoRA files.
        words: what token ids are to the U-Net.
        vae: gives latents `(N, 4, 16, 16)` of pictures of 64 pixels.
        shift, scale: normalisation of the latents, `(4,)`.
    """

    unet: UNet2DConditionModel
    texts: Mapping[str, Any] = field(default_factory=dict)
    words: Words
    tokenizer: Tokenizer
    vae: AutoencoderTiny
    shift: np.ndarray
    scale: np.ndarray

    def ids(self, prompts: list[str]) -> Tensor:
        """Token ids `(N, L)`."""
        return encode(self.tokenizer, prompts)

    def latents(self, pictures: np.ndarray) -> Tensor:
        """Pictures uint8 `(N, 64, 64, 3)` to normalised latents."""
        raw = encode_pictures(self.vae, pictures).astype(np.float32)
        return torch.from_numpy((raw - self.shift.reshape(4, 1, 1)) * self.scale.reshape(4, 1, 1))
