"""Stable Diffusion 1.x and 2.x, their inpainting models, InstructPix2Pix and LCM: configs that quad can run, and how inputs are laid out.

Layouts are those of the models' training: Stable Diffusion (4 channels), its inpainting models (Rombach et al. 2022, section 4.5: mask,
then the masked picture's latent), and InstructPix2Pix (Brooks et al. 2023, section 3.2: the picture's latent as the autoencoder gives it).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from quad.core.errors import UnsupportedError, mismatch
from quad.core.manifest import Beside
from quad.model.base.refusal import CHOOSE, SUPPORTED
from quad.model.base.toyland_file import WORLD_FILE

PIPELINES = (
    "StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline", "StableDiffusionInpaintPipelineLegacy",
    "StableDiffusionInstructPix2PixPipeline", "LatentConsistencyModelPipeline", "LatentConsistencyModelImg2ImgPipeline",
)  # fmt: skip
INPAINTING: tuple[Beside, ...] = ("mask", "condition")
EDITING: tuple[Beside, ...] = ("raw-condition",)
GUIDANCE = 7.5
_BLOCKS = {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
           "mid_block_type": ("UNetMidBlock2DCrossAttn",)}  # fmt: skip
# Inputs that a U-Net of these has beside text, and that no task of ours can give.
_CONDITIONS = ("addition_embed_type", "class_embed_type", "encoder_hid_dim_type", "time_cond_proj_dim", "num_class_embeds")


def check_unet(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse a U-Net with other inputs than text, or with blocks of another family.

    Raises:
        UnsupportedError: it names the field of the config.
    """
    if config.get("addition_embed_type") == "text_time":
        raise UnsupportedError(mismatch(f"{folder}", SUPPORTED, "addition_embed_type='text_time' (SDXL)", CHOOSE))
    for name in _CONDITIONS:
        if config.get(name):
            raise UnsupportedError(mismatch(f"{folder}", "a U-Net conditioned on text alone", f"{name}={config[name]!r}", CHOOSE))
    for name, supported in _BLOCKS.items():
        blocks = config.get(name) or ()
        unknown = [block for block in ([blocks] if isinstance(blocks, str) else blocks) if block not in supported]
        if unknown:
            raise UnsupportedError(mismatch(f"{folder}", f"{name} of {', '.join(supported)}", unknown[0], CHOOSE))


def unet_inputs(folder: Path, config: Mapping[str, Any], latent_channels: int) -> tuple[Beside, ...] | msgspec.UnsetType:
    """The inputs that the U-Net reads beside the latent; unset in the reference world and where it reads nothing.

    Raises:
        UnsupportedError: a number of channels that means nothing here.
    """
    channels, outputs = int(config["in_channels"]), int(config["out_channels"])
    if outputs != latent_channels:
        raise UnsupportedError(mismatch(f"{folder}", f"{latent_channels} output channels", outputs, CHOOSE))
    if (folder.parent / WORLD_FILE).is_file() or channels == latent_channels:
        return msgspec.UNSET
    layouts = {2 * latent_channels: EDITING, 2 * latent_channels + 1: INPAINTING}
    if channels not in layouts:
        expected = f"{latent_channels}, {2 * latent_channels} (InstructPix2Pix) or {2 * latent_channels + 1} (inpainting) input channels"
        raise UnsupportedError(mismatch(f"{folder}", expected, f"in_channels={channels}", CHOOSE))
    return layouts[channels]
