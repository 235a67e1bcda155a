"""Stable Diffusion XL: base, inpainting, InstructPix2Pix, and those distilled of it, with two text encoders and the picture's size.

Source: Podell et al. 2023 (SDXL); Gupta et al. 2024 (SSD-1B, Vega: fewer layers, as their configs say).
"""

from __future__ import annotations

from dataclasses import replace

from quad.core.families.stable_diffusion import BLOCK_RULES, CLIP, NOTHING, SD1
from quad.core.families.table import EDITING, INPAINTING, ConfigRule, Denoiser, Family, Layout, OneFile, OneFileText, Signs, TextEncoder
from quad.core.slots import TEXT_ENCODER, TEXT_ENCODER_2

_SD_BLOCK = r"(?:attentions[._]\d+|(?:input|output)_blocks[._]\d+[._]1|middle_block[._]1)"
_BASE = "an SDXL base, which is told six numbers of a size"

SDXL = Family(
    name="SDXL",
    signs=Signs(
        name="SDXL",
        classes=("StableDiffusionXL",),
        keys=r"lora_te2_|clip_g\.|text_encoder_2\.|add_embedding|label_emb|" + _SD_BLOCK + r"[._]transformer_blocks[._][1-9]",
        metadata="stable-diffusion-xl|sdxl",
        text_width=2048,
    ),
    pipelines=(
        "StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline",
        "StableDiffusionXLInstructPix2PixPipeline",
    ),
    denoiser=Denoiser(
        folder="unet",
        classes={"UNet2DConditionModel": "quad.model.base.text_time_unet:TextTimeUNet"},
        config_marks={"addition_embed_type": "text_time"},
        rules=(
            # 1280 of the prompt and 256 for each number: the refiner is told five, one of them a score.
            ConfigRule(
                name="projection_class_embeddings_input_dim",
                refused=(2560, None),
                expected=_BASE,
                shown="projection_class_embeddings_input_dim={value!r} (the refiner has 2560)",
            ),
            *(
                ConfigRule(name=name, allowed=NOTHING, expected="a U-Net conditioned on text and sizes alone")
                for name in ("class_embed_type", "encoder_hid_dim_type", "time_cond_proj_dim", "num_class_embeds")
            ),
            *(
                replace(rule, allowed=(*(rule.allowed or ()), "UNetMidBlock2D"), expected=f"{rule.expected}, UNetMidBlock2D")
                if rule.name == "mid_block_type"
                else rule
                for rule in BLOCK_RULES
            ),
        ),
        layouts=(
            Layout(pipeline="StableDiffusionXLPipeline", scheduler="sdxl"),
            Layout(
                beside=EDITING,
                condition="image",
                shown="InstructPix2Pix",
                pipeline="StableDiffusionXLInstructPix2PixPipeline",
                scheduler="sdxl",
            ),
            Layout(
                beside=INPAINTING,
                condition="cut-image",
                shown="inpainting",
                pipeline="StableDiffusionXLInpaintPipeline",
                scheduler="sdxl",
            ),
        ),
        sizes=True,
    ),
    texts=(
        TextEncoder(classes=CLIP, part="clip_l", hidden="penultimate"),
        TextEncoder(
            folder="text_encoder_2",
            tokenizer="tokenizer_2",
            classes={"CLIPTextModelWithProjection": "transformers:CLIPTextModelWithProjection"},
            part="clip_g",
            hidden="penultimate",
            pooled=True,
        ),
    ),
    zeros_for_empty=True,
    vae_scaling=0.13025,
    vae_statistics=True,
    vae_overflows=True,
    guidance=5.0,
    one_file=OneFile(
        texts=(
            OneFileText(prefix="conditioner.embedders.0.transformer.", spelling="clip"),
            OneFileText(prefix="conditioner.embedders.1.model.", spelling="open-clip", pad="!"),
        ),
        heads=None,
        side=128,
        velocity_side=128,
    ),
    lora=replace(
        SD1.lora,
        prefixes={
            **SD1.lora.prefixes,
            "text_encoder_2.": TEXT_ENCODER_2,
            "text_encoders.clip_g.transformer.": TEXT_ENCODER_2,
            "clip_g.transformer.": TEXT_ENCODER_2,
            "clip_g.": TEXT_ENCODER_2,
            "conditioner.embedders.0.transformer.": TEXT_ENCODER,
        },
        flat_prefixes={**SD1.lora.flat_prefixes, "lora_te2_": TEXT_ENCODER_2},
        named_velocity=False,
    ),
)  # fmt: skip
