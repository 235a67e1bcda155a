"""The families of models that open, and which one a directory holds: told from its configs before any weight is read.

To add a family:

1. Write a file beside `stable_diffusion.py` and `pixart.py`: the pipelines of `model_index.json` that are of it, a check of the denoiser's
   config that refuses by name what quad cannot run, and what the denoiser reads beside the latent. A denoiser that diffusers does not call
   as it calls a U-Net gets a subclass with a U-Net's signature there, and so does a text encoder that is not called as CLIP is: what reads
   a base need not know which it has.
2. Add its row to `FAMILIES`; where its name stands among those of `refusal.py`, mend them.
3. A text encoder of a new kind also needs its tokenizer (`tokenizer_files.read_tokenizer`) and its attention
   (`quad.model.slots.attention`), an autoencoder of a new kind its class in `open.py`.
4. Test it as `tests/model/base/test_pixart.py` does: a tiny model of the libraries' own classes is opened, and its pictures are theirs.

Finding, fetching, opening, slots, tasks and defaults follow from the row.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import msgspec
import transformers

from quad.core.errors import UnsupportedError, mismatch
from quad.core.manifest import Beside
from quad.core.slots import UNET
from quad.model.base import pixart, stable_diffusion
from quad.model.base.refusal import CHOOSE, SUPPORTED, with_family
from quad.model.base.toyland_file import WORLD_FILE
from quad.model.base.weight_files import read_config

_INDEX = "model_index.json"
# Stable Diffusion's first configs say 32 and mean this; diffusers' pipelines mend it below 0.9.
_TRAINED_SIDE = 64
_FIRST_VERSIONS = re.compile(r"0\.[0-8]\.")
Inputs = tuple[Beside, ...] | msgspec.UnsetType


@dataclass(frozen=True, kw_only=True)
class Family:
    """Models that are opened in one way.

    Args:
        folder: of the denoiser in a model directory; it tells the families apart.
        pipelines: diffusers' classes in `model_index.json`.
        denoisers: class name in the denoiser's config -> class that is called as a U-Net is.
        text_encoders: class name in the text encoder's config -> class that is called as CLIP is.
        check: refuses a denoiser by its folder and config.
        inputs: what a denoiser reads beside the latent, by its folder, its config and the latent's channels.
        guidance: scale where nobody says.
    """

    folder: str
    pipelines: tuple[str, ...]
    denoisers: Mapping[str, Any]
    text_encoders: Mapping[str, Any]
    check: Callable[[Path, Mapping[str, Any]], None]
    inputs: Callable[[Path, Mapping[str, Any], int], Inputs]
    guidance: float


FAMILIES = (
    Family(
        folder=UNET,
        pipelines=stable_diffusion.PIPELINES,
        denoisers={"UNet2DConditionModel": diffusers.UNet2DConditionModel},
        # What stands beside the text half of CLIP is passed over.
        text_encoders=dict.fromkeys(("CLIPTextModel", "CLIPTextModelWithProjection", "CLIPModel"), transformers.CLIPTextModel),
        check=stable_diffusion.check_unet,
        inputs=stable_diffusion.unet_inputs,
        guidance=stable_diffusion.GUIDANCE,
    ),
    Family(
        folder="transformer",
        pipelines=pixart.PIPELINES,
        denoisers={"PixArtTransformer2DModel": pixart.PixArtDenoiser},
        text_encoders={"T5EncoderModel": pixart.MaskedT5},
        check=pixart.check_transformer,
        inputs=pixart.transformer_inputs,
        guidance=pixart.GUIDANCE,
    ),
)


def family_in(folders: Collection[str]) -> Family:
    """The family whose denoiser's folder is there; the first where there is none."""
    return next((family for family in FAMILIES if family.folder in folders), FAMILIES[0])


def family_of(directory: Path) -> Family:
    """The family of a model directory, by the folder of its denoiser."""
    return family_in([family.folder for family in FAMILIES if (directory / family.folder).is_dir()])


def denoiser_folder(directory: Path) -> Path:
    """The folder of the denoiser: the family's, whether it is there or not."""
    return directory / family_of(directory).folder


def check_family(directory: Path) -> None:
    """Refuse a directory that holds no model of a family.

    Raises:
        UnsupportedError: another pipeline, or a denoiser of another kind. InputError: a config that is no JSON.
    """
    if (directory / WORLD_FILE).is_file():
        return
    if (directory / _INDEX).is_file():
        pipeline = str(read_config(directory / _INDEX).get("_class_name"))
        if not any(pipeline in family.pipelines for family in FAMILIES):
            raise UnsupportedError(mismatch(f"{directory / _INDEX}", SUPPORTED, with_family(pipeline), CHOOSE))
    family = family_of(directory)
    config = directory / family.folder / "config.json"
    if config.is_file():  # where there is none, opening says so
        family.check(config.parent, read_config(config))


def pipeline_class(directory: Path) -> str:
    """diffusers' class for the directory, whose name says what the class mends in the scheduler; the plain one where none is named."""
    named = read_config(directory / _INDEX).get("_class_name") if (directory / _INDEX).is_file() else None
    return named if isinstance(named, str) else FAMILIES[0].pipelines[0]


def index_scheduler(directory: Path) -> str | None:
    """The scheduler's class in `model_index.json`, which goes before the one in the scheduler's own config; None where none is named."""
    entry = read_config(directory / _INDEX).get("scheduler") if (directory / _INDEX).is_file() else None
    named = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
    return named if isinstance(named, str) else None


def trained_grid(unet: Any) -> tuple[int, int] | None:
    """Rows and columns of latent pixels that the denoiser was trained on, as its config, a mapping, says or means; None if it does not."""
    match unet["sample_size"]:
        case int(side):
            first = _FIRST_VERSIONS.match(str(unet.get("_diffusers_version", "")))
            side = _TRAINED_SIDE if first and side < _TRAINED_SIDE else side
            return side, side
        case [int(rows), int(columns)]:
            return rows, columns
        case _:
            return None


def require_unet(directory: Path) -> None:
    """Refuse a model for a target whose rules were made for U-Nets.

    Raises:
        UnsupportedError: its denoiser is a transformer.
    """
    if (folder := denoiser_folder(directory)).name != UNET:
        remedy = "build it with --target cpu or openvino"
        raise UnsupportedError(mismatch(f"{folder}", "a U-Net, as targets of integers alone need", "a transformer", remedy))
