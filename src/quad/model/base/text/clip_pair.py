"""CLIP's and OpenCLIP's text encoders as one: their hidden states side by side, then the prompt as a whole in a row of its own.

Both read the same tokens; OpenCLIP's prompts are filled up with another one. States are those of an inner layer, the last but one as SDXL
was trained, without the last layer norm; the prompt as a whole is the second one's last state at its end, projected.
Source: Podell et al. 2023 (SDXL), section 2.1; diffusers' `StableDiffusionXLPipeline.encode_prompt`.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutput

AS_TRAINED = 2  # which layer from the last one gives the states


class ClipPair(nn.Module):
    """Called as CLIP's text encoder is.

    Args:
        clip_l: CLIPTextModel.
        clip_g: CLIPTextModelWithProjection.
        end: token that ends a prompt.
        pads: tokens that fill a prompt up, of each; the first's may be the end itself.
        layer: which one from the last gives the states.
    """

    def __init__(self, clip_l: Any, clip_g: Any, *, end: int, pads: tuple[int, int], layer: int = AS_TRAINED) -> None:
        super().__init__()
        self.clip_l, self.clip_g, self.end, self.pads, self.layer = clip_l, clip_g, end, pads, layer
        first = text_model(clip_l)
        del first.encoder.layers[int(first.config.num_hidden_layers) + 1 - layer :]  # what no one reads
        self.config = SimpleNamespace(model_type="clip_pair")

    @property
    def encoders(self) -> tuple[Any, Any]:
        """Both, in the order of their states."""
        return self.clip_l, self.clip_g

    def forward(self, input_ids: Tensor) -> BaseModelOutput:
        """`last_hidden_state (batch, tokens + pooled rows, D)` of `input_ids (batch, tokens)`; D is that of both together."""
        ended = (input_ids == self.end).int()
        later = torch.cat([0 * ended[:, :1], ended[:, :-1]], dim=1)  # behind an end; chips take no Pad of integers
        padding = (ended * later).bool() if self.pads[0] == self.end else None
        ids = input_ids if padding is None else torch.where(padding, self.pads[1], input_ids)
        first, _ = self._states(text_model(self.clip_l), input_ids, None)
        second, last = self._states(text_model(self.clip_g), ids, 1 - self.layer)
        at_end = (ended * (1 - later)).to(last.dtype)
        pooled = self.clip_g.text_projection((at_end[:, None] @ text_model(self.clip_g).final_layer_norm(last)).flatten(1))
        states = torch.cat([first, second], dim=-1)
        rows = functional.pad(pooled, (0, -pooled.shape[1] % states.shape[2])).unflatten(1, (-1, states.shape[2]))
        return BaseModelOutput(last_hidden_state=torch.cat([states, rows], dim=1))

    def _states(self, encoder: Any, ids: Tensor, split: int | None) -> tuple[Tensor, Tensor]:
        """States behind the layers up to `split`, and behind all of them."""
        hidden = encoder.embeddings(input_ids=ids)
        mask = create_causal_mask(config=encoder.config, inputs_embeds=hidden, attention_mask=None, past_key_values=None)
        layers, inner = list(encoder.encoder.layers), hidden
        for number, layer in enumerate(layers):
            hidden = layer(hidden, mask, is_causal=True)
            if split is None or number == len(layers) + split - 1:
                inner = hidden
        return inner, hidden


def text_model(encoder: Any) -> Any:
    """A CLIP's text half, whatever module is around it."""
    return getattr(encoder, "text_model", encoder)


def clip_encoders(text_encoder: Any) -> tuple[Any, ...]:
    """The CLIP text encoders in a text encoder; none where it is another's."""
    if isinstance(text_encoder, ClipPair):
        return text_encoder.encoders
    return (text_encoder,) if text_encoder.config.model_type == "clip_text_model" else ()
