"""Stable Diffusion 1.x and 2.x, their inpainting models, InstructPix2Pix and LCM.

Layouts are those of the models' training: Stable Diffusion (4 channels), its inpainting models (Rombach et al. 2022, section 4.5: mask,
then the masked picture's latent), and InstructPix2Pix (Brooks et al. 2023, section 3.2: the picture's latent as the autoencoder gives it).
"""

from __future__ import annotations

from dataclasses import replace

from quad.core.families.table import (
    EDITING,
    INPAINTING,
    ConfigRule,
    Denoiser,
    Family,
    Layout,
    LoraNames,
    OneFile,
    OneFileText,
    Signs,
    TextEncoder,
)
from quad.core.slots import TEXT_ENCODER, UNET

NOTHING = (None, False, 0, "")
_BLOCKS = {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
           "mid_block_type": ("UNetMidBlock2DCrossAttn",)}  # fmt: skip
BLOCK_RULES = tuple(
    ConfigRule(name=name, allowed=(None, *blocks), expected=f"{name} of {', '.join(blocks)}", shown="{value}")
    for name, blocks in _BLOCKS.items()
)
# CLIP's text half; what stands beside it is passed over.
CLIP = dict.fromkeys(("CLIPTextModel", "CLIPTextModelWithProjection", "CLIPModel"), "transformers:CLIPTextModel")
# ComfyUI's and OneTrainer's names of one text encoder (CLIP L of the first generation, H of the second), and that of one-file checkpoints.
_CLIPS = ("clip_l", "clip_h", "cond_stage_model")

SD1 = Family(
    name="Stable Diffusion 1.x",
    signs=Signs(name="Stable Diffusion 1.x", metadata=r"stable-diffusion-v1|sd-?v?1", text_width=768),
    pipelines=(
        "StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline",
        "StableDiffusionInpaintPipelineLegacy", "StableDiffusionInstructPix2PixPipeline", "LatentConsistencyModelPipeline",
        "LatentConsistencyModelImg2ImgPipeline",
    ),
    repairs={
        "StableDiffusionPipeline": {"steps_offset": 1, "clip_sample": False},
        "StableDiffusionImg2ImgPipeline": {"steps_offset": 1, "clip_sample": False},
        "StableDiffusionInpaintPipeline": {"steps_offset": 1, "skip_prk_steps": True},
    },
    denoiser=Denoiser(
        folder=UNET,
        classes={"UNet2DConditionModel": "diffusers:UNet2DConditionModel"},
        rules=(
            # Inputs that a U-Net of these has beside text, and that no task of ours can give.
            *(
                ConfigRule(name=name, allowed=NOTHING, expected="a U-Net conditioned on text alone")
                for name in ("addition_embed_type", "class_embed_type", "encoder_hid_dim_type", "time_cond_proj_dim", "num_class_embeds")
            ),
            *BLOCK_RULES,
        ),
        layouts=(
            Layout(pipeline="StableDiffusionPipeline"),
            Layout(
                beside=EDITING,
                condition="image",
                shown="InstructPix2Pix",
                pipeline="StableDiffusionInstructPix2PixPipeline",
                scheduler="instruct-pix2pix",
            ),
            Layout(beside=INPAINTING, condition="cut-image", shown="inpainting", pipeline="StableDiffusionInpaintPipeline"),
        ),
    ),
    texts=(TextEncoder(classes=CLIP),),
    vae_scaling=0.18215,
    guidance=7.5,
    one_file=OneFile(
        texts=(OneFileText(prefix="cond_stage_model.transformer.", spelling="clip"),),
        heads=8,
        side=64,
        velocity_side=64,
    ),
    lora=LoraNames(
        prefixes={
            "unet.": UNET,
            "text_encoder.": TEXT_ENCODER,
            **{f"{holder}{clip}.transformer.": TEXT_ENCODER for holder in ("text_encoders.", "") for clip in _CLIPS},
            "clip_l.": TEXT_ENCODER,  # the Open Model Initiative's, which OneTrainer writes too
        },
        flat_prefixes={"lora_unet_": UNET, "lora_te_": TEXT_ENCODER, "lora_te1_": TEXT_ENCODER, "lycoris_": None},
        spellings=("original-blocks",),
        named_velocity=True,
    ),
)  # fmt: skip

SD2 = replace(
    SD1,
    name="Stable Diffusion 2.x",
    signs=Signs(name="Stable Diffusion 2.x", metadata=r"stable-diffusion-v2|sd-?v?2", text_width=1024),
    denoiser=replace(SD1.denoiser, config_marks={"cross_attention_dim": 1024}),
    one_file=OneFile(
        # Trained on the last layer but one of OpenCLIP's 24.
        texts=(OneFileText(prefix="cond_stage_model.model.", spelling="open-clip", layers=23, pad="!"),),
        heads=None,
        side=64,
        velocity_side=96,
        guess_velocity=True,
    ),
)
