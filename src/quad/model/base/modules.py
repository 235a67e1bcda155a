"""The text encoder and the two halves of the VAE as modules with exactly the graph contract's inputs and outputs."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from quad.core.manifest import LatentSpec
from quad.model.base.text.vector_table import reading

M = TypeVar("M", bound=nn.Module)


def share_copy(module: M) -> M:
    """A copy of the structure that shares every parameter and buffer: surgery on it leaves the caller's module alone."""
    memo: dict[int, object] = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, memo)


class TextModule(nn.Module):
    """`input_ids (1, L)` int64, and `embeddings (1, L, D)` where some stand for vectors -> `last_hidden_state (1, L, D)`."""

    def __init__(self, text_encoder: nn.Module) -> None:
        super().__init__()
        self.text_encoder = text_encoder

    def forward(self, input_ids: Tensor, embeddings: Tensor | None = None) -> Tensor:
        with reading(self.text_encoder, embeddings):
            hidden: Tensor = self.text_encoder(input_ids).last_hidden_state
        return hidden


class _LatentSpace(nn.Module):
    """The per-channel normalisation of the latent space, `(1, C, 1, 1)` each."""

    scale: Tensor
    shift: Tensor

    def __init__(self, latent: LatentSpec) -> None:
        super().__init__()
        self.channels = latent.channels
        self.register_buffer("scale", torch.tensor(latent.scale).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("shift", torch.tensor(latent.shift).view(1, -1, 1, 1), persistent=False)


class VaeEncoderModule(_LatentSpace):
    """`image (1, 3, S, S)` in [-1, 1] -> `latent (1, C, S/f, S/f)`, the posterior's mean, normalised to model space."""

    def __init__(self, vae: Any, latent: LatentSpec) -> None:
        super().__init__(latent)
        self.encoder: nn.Module = vae.encoder
        # AutoencoderKL may have this 1x1 convolution, AutoencoderTiny has none.
        self.quant_conv: nn.Module = getattr(vae, "quant_conv", None) or nn.Identity()

    def forward(self, image: Tensor) -> Tensor:
        # AutoencoderKL gives mean and log variance side by side.
        mean: Tensor = self.quant_conv(self.encoder(image))[:, : self.channels]
        return (mean - self.shift) * self.scale


class VaeDecoderModule(_LatentSpace):
    """`latent (1, C, S/f, S/f)` in model space -> `image (1, 3, S, S)`, about [-1, 1], unclamped."""

    def __init__(self, vae: Any, latent: LatentSpec) -> None:
        super().__init__(latent)
        self.decoder: nn.Module = vae.decoder
        self.post_quant_conv: nn.Module = getattr(vae, "post_quant_conv", None) or nn.Identity()

    def forward(self, latent: Tensor) -> Tensor:
        image: Tensor = self.decoder(self.post_quant_conv(latent / self.scale + self.shift))
        return image
