"""PixArt-alpha without micro-conditions. Source: Chen et al. 2023 (PixArt-alpha)."""

from __future__ import annotations

from quad.core.families.table import ConfigRule, Denoiser, Family, Layout, LoraNames, Signs, TextEncoder
from quad.core.slots import TEXT_ENCODER, UNET

_TEXT_ALONE = "a transformer conditioned on text alone"
_SIZES = "use_additional_conditions (size and aspect ratio)"
_PLAIN = "plain attention to a projected caption"

PIXART_ALPHA = Family(
    name="PixArt-alpha",
    signs=Signs(name="PixArt", classes=("PixArt",), keys=r"adaln_single|caption_projection", metadata="pixart"),
    pipelines=("PixArtAlphaPipeline",),
    denoiser=Denoiser(
        folder="transformer",
        classes={"PixArtTransformer2DModel": "quad.model.base.masked_context:PixArtDenoiser"},
        rules=(
            ConfigRule(name="use_additional_conditions", allowed=(None, False), expected=_TEXT_ALONE, shown=_SIZES),
            # Where its config does not say, a model for latents of 128 pixels is told the picture's size.
            ConfigRule(
                name="sample_size",
                refused=(128,),
                default=128,
                expected=_TEXT_ALONE,
                shown=_SIZES,
                when={"use_additional_conditions": None},
            ),
            ConfigRule(name="attention_type", allowed=("default",), default="default", expected=_PLAIN),
            ConfigRule(name="caption_channels", refused=(None,), expected=_PLAIN),
        ),
        layouts=(Layout(),),
        variance=True,
        text_width="caption_channels",
    ),
    texts=(TextEncoder(classes={"T5EncoderModel": "quad.model.base.masked_context:MaskedT5"}, caption_length=120),),
    vae_scaling=0.18215,
    guidance=4.5,
    lora=LoraNames(prefixes={"transformer.": UNET, "text_encoder.": TEXT_ENCODER}, flat_prefixes={"lora_transformer_": UNET}),
)
