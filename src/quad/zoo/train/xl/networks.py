"""The networks of `toyland-xl`, SDXL in small, and what they begin with: the trained ones of `toyland`.

Where a layer stands in both, its weights are copied; what SDXL adds begins so that it adds nothing. `toyland`'s denoiser reads its words
behind a last layer norm, SDXL's before one: the norm is taken into keys and values as the linear map nearest to it on captions, which
leaves 0.25 % of its variance.

    symbol     here          meaning
    h          `raw`         states behind the last layer, before the norm
    n(h)       `normed`      the same behind the norm
    M, c       `fit`         least squares of n(h) = h M + c; K M in place of K, and V c joins the bias behind the attention,
                             whose weights sum to 1
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from quad.model.base.text.clip_pair import ClipPair, text_model
from quad.model.base.text_time_unet import TextTimeUNet
from quad.zoo import world
from quad.zoo.train.text import HIDDEN, LENGTH, encode, new_tokenizer

SIZE = 128
SECOND_HIDDEN, POOLED, SIZE_CHANNELS = 96, 64, 32
UNET: dict[str, Any] = {  # SDXL's in small: no attention in the first level, two blocks deep in the last
    "sample_size": 16,
    "in_channels": 9,
    "out_channels": 4,
    "block_out_channels": (64, 96, 160),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": [1, 1, 2],
    "cross_attention_dim": HIDDEN + SECOND_HIDDEN,
    "attention_head_dim": [4, 4, 4],
    "norm_num_groups": 16,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": SIZE_CHANNELS,
    "projection_class_embeddings_input_dim": POOLED + 6 * SIZE_CHANNELS,
}
ORDER = ("<pad>", "<bos>", "<unk>", *world.VOCABULARY, "<eos>")  # transformers reads an end of number 2 as the largest number of a prompt


def new_unet() -> TextTimeUNet:
    """The untrained U-Net, 9.9 M parameters."""
    return TextTimeUNet(**UNET)


def new_vae() -> AutoencoderTiny:
    """`toyland`'s autoencoder with a level more on either side: f = 8."""
    return AutoencoderTiny(
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        num_encoder_blocks=(0, 0, 1, 2),
        num_decoder_blocks=(3, 2, 1, 0),
        latent_channels=4,
    )


def _clip_config(hidden: int, activation: str) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(ORDER),
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        projection_dim=POOLED,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        hidden_act=activation,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=len(ORDER) - 1,
    )


def new_texts() -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    """Two text encoders of three layers each; the denoiser reads the states behind the second layer."""
    return CLIPTextModel(_clip_config(HIDDEN, "quick_gelu")), CLIPTextModelWithProjection(_clip_config(SECOND_HIDDEN, "gelu"))


def pair_of(first: CLIPTextModel, second: CLIPTextModelWithProjection) -> ClipPair:
    """Both called as one; the first loses its last layer."""
    return ClipPair(first, second, end=len(ORDER) - 1, pads=(0, 0))


def xl_tokenizer() -> Tokenizer:
    """`toyland`'s words in the order of `ORDER`."""
    data = json.loads(new_tokenizer().to_str())
    data["model"]["vocab"] = {word: i for i, word in enumerate(ORDER)}
    ids = data["model"]["vocab"]
    for token in data["post_processor"]["special_tokens"].values():
        token["ids"] = [ids[word] for word in token["tokens"]]
    return Tokenizer.from_str(json.dumps(data))


def start_first_text(first: CLIPTextModel, toyland: CLIPTextModel) -> None:
    """Give SDXL's first text encoder the layers of `toyland`'s; its last one, which no one reads, is the one before it again."""
    old = {word: i for i, word in enumerate(("<pad>", "<bos>", "<eos>", "<unk>", *world.VOCABULARY))}
    source = text_model(toyland).state_dict()
    source["embeddings.token_embedding.weight"] = source["embeddings.token_embedding.weight"][[old[word] for word in ORDER]]
    source |= {k.replace("layers.1.", "layers.2."): v for k, v in source.items() if "layers.1." in k}
    text_model(first).load_state_dict(source)


@torch.no_grad()
def norm_as_linear(toyland: CLIPTextModel, captions: list[str]) -> tuple[Tensor, Tensor]:
    """M `(128, 128)` and c `(128,)` with n(h) = h M + c nearly."""
    ids = encode(new_tokenizer(), captions)
    output = toyland(ids, output_hidden_states=True)
    raw, normed = output.hidden_states[-1].flatten(0, 1).double(), output.last_hidden_state.flatten(0, 1).double()
    ones = torch.cat([raw, torch.ones(len(raw), 1, dtype=raw.dtype)], dim=1)
    fit = torch.linalg.lstsq(ones, normed).solution
    return fit[:-1].float(), fit[-1].float()


@torch.no_grad()
def start_unet(unet: TextTimeUNet, toyland: UNet2DConditionModel, fit: tuple[Tensor, Tensor]) -> None:
    """Give the U-Net `toyland`'s weights; what is new adds nothing yet."""
    source, matrix, constant = dict(toyland.state_dict()), fit[0], fit[1]
    for name, value in unet.state_dict().items():
        if name in source:
            given = source[name]
            if ".attn2.to_k" in name or ".attn2.to_v" in name:
                value.zero_()
                value[:, :HIDDEN] = given @ matrix.T
            else:
                value.copy_(given.reshape(value.shape))
    for name, layer in unet.named_modules():
        if name.endswith("attn2") and f"{name}.to_v.weight" in source:
            layer.to_out[0].bias += layer.to_out[0].weight @ (source[f"{name}.to_v.weight"] @ constant)
        if name.endswith("transformer_blocks.1"):
            for last in (layer.attn1.to_out[0], layer.attn2.to_out[0], layer.ff.net[2]):
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)
    nn.init.zeros_(unet.add_embedding.linear_2.weight)
    nn.init.zeros_(unet.add_embedding.linear_2.bias)


@torch.no_grad()
def start_vae(vae: AutoencoderTiny, toyland: AutoencoderTiny) -> None:
    """Give the autoencoder `toyland`'s levels; the new ones halve and double a picture roughly."""
    encoder, old = list(vae.encoder.layers), list(toyland.encoder.layers)
    for new, given in zip(encoder[2:], old[1:], strict=True):
        new.load_state_dict(given.state_dict())
    kernel = torch.zeros_like(encoder[0].weight)
    for colour in range(3):
        kernel[colour, colour, 1, 1] = 1.0
    encoder[0].weight.copy_(kernel + 0.02 * torch.randn_like(kernel))
    nn.init.zeros_(encoder[0].bias)
    decoder, old = list(vae.decoder.layers), list(toyland.decoder.layers)
    for new, given in zip(decoder, old[:-1], strict=False):
        new.load_state_dict(given.state_dict())


def load_toyland(directory: Path) -> tuple[CLIPTextModel, AutoencoderTiny, UNet2DConditionModel]:
    """The trained networks of `toyland` in float32."""
    kinds: tuple[Any, ...] = (CLIPTextModel, AutoencoderTiny, UNet2DConditionModel)
    text, vae, unet = (
        kind.from_pretrained(directory / name, torch_dtype=torch.float32).eval()
        for kind, name in zip(kinds, ("text_encoder", "vae", "unet"), strict=True)
    )
    return text, vae, unet
