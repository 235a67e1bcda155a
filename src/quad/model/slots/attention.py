"""Sites put into a network: before every layer, and in attention, for diffusers' `Attention` and for the text layers of CLIP and T5."""

from __future__ import annotations

from typing import Any

from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.models.clip.modeling_clip import CLIPAttention
from transformers.models.t5.modeling_t5 import T5Attention

from quad.core.errors import UnsupportedError, mismatch
from quad.model.slots.sites import AttentionSites, Site, SitedConv2d, SitedLinear, collect_sites

TEXT_IMPLEMENTATION = "quad_sited"


class SitedAttention(AttentionSites):
    """A processor for diffusers' Attention: the same numbers as the stock one, written out so that each operand has a Site."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Spelled out, because diffusers reads this signature to decide what to pass."""
        output: Tensor = super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        return output

    def forward(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None,
        attention_mask: Tensor | None,
        temb: Tensor | None,
    ) -> Tensor:
        """Attention over tokens `(batch, tokens, channels)` or a picture `(batch, channels, height, width)`."""
        picture, x = hidden_states, hidden_states
        if attn.spatial_norm is not None:
            x = attn.spatial_norm(x, temb)
        if picture.ndim == 4:
            x = x.flatten(2).transpose(1, 2)
        if attn.group_norm is not None:
            x = attn.group_norm(x.transpose(1, 2)).transpose(1, 2)
        context = x if encoder_hidden_states is None else encoder_hidden_states
        if encoder_hidden_states is not None and attn.norm_cross:
            context = attn.norm_encoder_hidden_states(context)
        y = self._heads(attn, x, context, attention_mask)
        for layer in attn.to_out:
            y = layer(y)
        if picture.ndim == 4:
            y = y.transpose(1, 2).reshape(picture.shape)
        if attn.residual_connection:
            y = y + picture
        return y if attn.rescale_output_factor == 1 else y / attn.rescale_output_factor

    def _heads(self, attn: Any, x: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = (
            layer(t).unflatten(2, (attn.heads, -1)).transpose(1, 2)
            for layer, t in ((attn.to_q, x), (attn.to_k, context), (attn.to_v, context))
        )
        if attn.norm_q is not None:
            q = attn.norm_q(q)
        if attn.norm_k is not None:
            k = attn.norm_k(k)
        if mask is not None:
            mask = attn.prepare_attention_mask(mask, context.shape[1], x.shape[0])
            mask = mask.unflatten(0, (x.shape[0], attn.heads))
        return self.attend(q, k, v, mask, attn.scale).transpose(1, 2).flatten(2)


def _text_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float, **more: Any
) -> tuple[Tensor, None]:
    """An attention function as transformers calls it, T5 with its relative positions; dropout is off, because bases are frozen."""
    added = [bias for bias in (more.get("position_bias"), attention_mask) if bias is not None]
    mask = added[0] + added[1] if len(added) == 2 else next(iter(added), None)
    return module.sites.attend(query, key, value, mask, scaling).transpose(1, 2), None


AttentionInterface.register(TEXT_IMPLEMENTATION, _text_attention)
AttentionMaskInterface.register(TEXT_IMPLEMENTATION, eager_mask)


def _check(path: str, attn: Any) -> None:
    stock = type(attn.processor)
    if stock not in (AttnProcessor, AttnProcessor2_0) or attn.added_kv_proj_dim is not None:
        raise UnsupportedError(
            mismatch(
                f"attention {path!r}",
                "diffusers' plain self- or cross-attention",
                f"{stock.__name__}",
                "load the model without IP-Adapter or a custom processor",
            )
        )


def _add_attention_sites(module: nn.Module) -> None:
    """Give every attention of `module` its four Sites, in place.

    Raises:
        UnsupportedError: a processor that is not diffusers' plain one.
    """
    for path, layer in list(module.named_modules()):
        if isinstance(layer, Attention) and not isinstance(layer.processor, SitedAttention):
            _check(path, layer)
            layer.set_processor(SitedAttention(path))
        elif isinstance(layer, CLIPAttention | T5Attention) and not hasattr(layer, "sites"):
            layer.sites = AttentionSites(path)
            layer.config._attn_implementation = TEXT_IMPLEMENTATION


def add_sites(module: nn.Module) -> dict[str, Site]:
    """Put a Site before every Linear and Conv2d and on every attention operand of `module`, in place.

    Parameter names and values stay; layers that have sites already keep them. Attention is diffusers', CLIP's or T5's.

    Raises:
        UnsupportedError: an attention that cannot be written as softmax(q k^T) v.
    """
    for path, layer in list(module.named_modules()):
        if isinstance(layer, SitedLinear | SitedConv2d):
            continue
        if isinstance(layer, nn.Linear):
            module.set_submodule(path, SitedLinear(layer, path))
        elif isinstance(layer, nn.Conv2d):
            module.set_submodule(path, SitedConv2d(layer, path))
    _add_attention_sites(module)
    return collect_sites(module)
