"""The family of a model directory, told from its configs before any weight is read; what quad cannot run is refused by name.

Layouts are those of the models' training: Stable Diffusion (4 channels), its inpainting models (Rombach et al. 2022, section 4.5: mask,
then the masked picture's latent), and InstructPix2Pix (Brooks et al. 2023, section 3.2: the picture's latent as the autoencoder gives it).
PixArt-alpha is the one transformer among them (Chen et al. 2023), without micro-conditions.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec

from quad.core.errors import UnsupportedError, mismatch
from quad.core.manifest import Beside
from quad.core.slots import UNET
from quad.model.base.toyland_file import WORLD_FILE
from quad.model.base.weight_files import read_config

INPAINTING: tuple[Beside, ...] = ("mask", "condition")
EDITING: tuple[Beside, ...] = ("raw-condition",)
_INDEX = "model_index.json"
TRANSFORMER = "transformer"
_ASKED = "a Stable Diffusion 1.x or 2.x or PixArt-alpha model"
_THEN = "choose such a model"
_PIPELINES = (
    "StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline", "StableDiffusionInpaintPipelineLegacy",
    "StableDiffusionInstructPix2PixPipeline", "LatentConsistencyModelPipeline", "LatentConsistencyModelImg2ImgPipeline",
    "PixArtAlphaPipeline",
)  # fmt: skip
# Found in the names of pipelines and networks; the first that fits.
_FAMILIES = {"StableDiffusionXL": "SDXL", "StableDiffusion3": "Stable Diffusion 3", "SD3": "Stable Diffusion 3", "Flux": "Flux",
             "PixArt": "PixArt", "Sana": "Sana", "HunyuanDiT": "Hunyuan-DiT", "Kandinsky": "Kandinsky", "DiT": "DiT"}  # fmt: skip
_BLOCKS = {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
           "mid_block_type": ("UNetMidBlock2DCrossAttn",)}  # fmt: skip
# Stable Diffusion's first configs say 32 and mean this; diffusers' pipelines mend it below 0.9.
_TRAINED_SIDE = 64
_FIRST_VERSIONS = re.compile(r"0\.[0-8]\.")
# Side of the latents at which PixArt is told the picture's size, where its config does not say.
_SIZED_SIDE = 128
# Inputs that a U-Net of these has beside text, and that no task of ours can give.
_CONDITIONS = ("addition_embed_type", "class_embed_type", "encoder_hid_dim_type", "time_cond_proj_dim", "num_class_embeds")


def check_family(directory: Path) -> None:
    """Refuse a directory that holds no model of the family.

    Raises:
        UnsupportedError: another pipeline, or a transformer or U-Net of another kind. InputError: a config that is no JSON.
    """
    if (directory / WORLD_FILE).is_file():
        return
    if (directory / _INDEX).is_file():
        kind = str(read_config(directory / _INDEX).get("_class_name"))
        if kind not in _PIPELINES:
            raise UnsupportedError(mismatch(f"{directory / _INDEX}", _ASKED, _called(kind), _THEN))
    folder = denoiser_folder(directory)
    if folder.name == TRANSFORMER:
        _check_transformer(folder, read_config(folder / "config.json"))
    elif (folder / "config.json").is_file():
        _check_unet(folder, read_config(folder / "config.json"))


def pipeline_class(directory: Path) -> str:
    """diffusers' class for the directory, whose name says what the class mends in the scheduler; the plain one where none is named."""
    named = read_config(directory / _INDEX).get("_class_name") if (directory / _INDEX).is_file() else None
    return named if isinstance(named, str) else _PIPELINES[0]


def denoiser_folder(directory: Path) -> Path:
    """Where the denoiser lies: `transformer`, or `unet` where there is one, or neither."""
    transformer = (directory / TRANSFORMER).is_dir() and not (directory / UNET).is_dir()
    return directory / (TRANSFORMER if transformer else UNET)


def trained_side(unet: Any) -> Any:
    """Latent pixels along one side that the denoiser was trained on, as its config, a mapping, says or means."""
    side = unet["sample_size"]
    first = _FIRST_VERSIONS.match(str(unet.get("_diffusers_version", "")))
    return _TRAINED_SIDE if first and isinstance(side, int) and side < _TRAINED_SIDE else side


def require_unet(directory: Path) -> None:
    """Refuse a model for a target whose rules were made for U-Nets.

    Raises:
        UnsupportedError: its denoiser is a transformer.
    """
    if (folder := denoiser_folder(directory)).name == TRANSFORMER:
        remedy = "build it with --target cpu or openvino"
        raise UnsupportedError(mismatch(f"{folder}", "a U-Net, as targets of integers alone need", "a transformer", remedy))


def beside_channels(directory: Path, unet: Any, latent_channels: int) -> tuple[Beside, ...] | msgspec.UnsetType:
    """The inputs that the denoiser reads beside the latent; unset in the reference world and where it reads nothing.

    Args:
        unet: its config, a mapping.

    Raises:
        UnsupportedError: a number of channels that means nothing here.
    """
    folder, channels, outputs = denoiser_folder(directory), int(unet["in_channels"]), int(unet["out_channels"])
    if folder.name == TRANSFORMER:
        # Twice as many out where it learned the variance too.
        if channels != latent_channels or outputs not in (channels, 2 * channels):
            expected = f"{latent_channels} channels in, {latent_channels} or {2 * latent_channels} out"
            raise UnsupportedError(mismatch(f"{folder}", expected, f"{channels} in, {outputs} out", _THEN))
        return msgspec.UNSET
    if outputs != latent_channels:
        raise UnsupportedError(mismatch(f"{directory / UNET}", f"{latent_channels} output channels", outputs, _THEN))
    if (directory / WORLD_FILE).is_file() or channels == latent_channels:
        return msgspec.UNSET
    layouts = {2 * latent_channels: EDITING, 2 * latent_channels + 1: INPAINTING}
    if channels not in layouts:
        expected = f"{latent_channels}, {2 * latent_channels} (InstructPix2Pix) or {2 * latent_channels + 1} (inpainting) input channels"
        raise UnsupportedError(mismatch(f"{directory / UNET}", expected, f"in_channels={channels}", _THEN))
    return layouts[channels]


def _called(kind: str) -> str:
    family = next((name for part, name in _FAMILIES.items() if part in kind), None)
    return f"{kind} ({family})" if family else kind


def _check_transformer(folder: Path, config: dict[str, Any]) -> None:
    kind = str(config.get("_class_name"))
    if kind != "PixArtTransformer2DModel":
        raise UnsupportedError(mismatch(f"{folder}", _ASKED, _called(kind), _THEN))
    sized = config.get("use_additional_conditions")
    if sized or (sized is None and config.get("sample_size", _SIZED_SIDE) == _SIZED_SIDE):
        condition = "use_additional_conditions (size and aspect ratio)"
        raise UnsupportedError(mismatch(f"{folder}", "a transformer conditioned on text alone", condition, _THEN))
    if config.get("attention_type", "default") != "default" or config.get("caption_channels") is None:
        attention = f"attention_type={config.get('attention_type')!r}, caption_channels={config.get('caption_channels')!r}"
        raise UnsupportedError(mismatch(f"{folder}", "plain attention to a projected caption", attention, _THEN))


def _check_unet(folder: Path, config: dict[str, Any]) -> None:
    if config.get("addition_embed_type") == "text_time":
        raise UnsupportedError(mismatch(f"{folder}", _ASKED, "addition_embed_type='text_time' (SDXL)", _THEN))
    for name in _CONDITIONS:
        if config.get(name):
            raise UnsupportedError(mismatch(f"{folder}", "a U-Net conditioned on text alone", f"{name}={config[name]!r}", _THEN))
    for name, supported in _BLOCKS.items():
        blocks = config.get(name) or ()
        unknown = [block for block in ([blocks] if isinstance(blocks, str) else blocks) if block not in supported]
        if unknown:
            raise UnsupportedError(mismatch(f"{folder}", f"{name} of {', '.join(supported)}", unknown[0], _THEN))
