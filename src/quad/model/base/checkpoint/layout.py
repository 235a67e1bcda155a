"""The family and parts of a one-file checkpoint, told from the names and shapes of its tensors; what is none of ours is refused by name.

Original names are those of the training code (Rombach et al. 2022, latent diffusion): `model.diffusion_model`, `first_stage_model`,
`cond_stage_model`. What shapes do not tell, the width of an attention head, is told by the generation: 1.x has 8 heads everywhere and
CLIP's text encoder, 2.x heads of 64 channels and OpenCLIP's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from quad.core.errors import InputError, UnsupportedError, mismatch
from quad.core.storage.pickles import PICKLE_REASON, is_pickled
from quad.core.storage.stable_file import StableFile
from quad.lora.quote import quoted
from quad.model.base.refusal import CHOOSE, SUPPORTED
from quad.model.base.stored_weights import StoredWeight, stored_weights
from quad.model.base.weight_files import open_header

UNET_PREFIX, CLIP_PREFIX, OPEN_CLIP_PREFIX = "model.diffusion_model.", "cond_stage_model.transformer.", "cond_stage_model.model."
VAE_PREFIX, EMA_PREFIX = "first_stage_model.", "model_ema."
FIRST_LAYER = f"{UNET_PREFIX}input_blocks.0.0.weight"
# Part of a tensor's name -> the family that has it; the first that fits.
_OTHERS = {
    "conditioner.embedders.": "SDXL", f"{UNET_PREFIX}label_emb.0.": "SDXL", "add_embedding.": "SDXL",
    f"{UNET_PREFIX}label_emb.": "a model with class or noise labels", "joint_blocks.": "Stable Diffusion 3", "double_blocks.": "Flux",
    "clip_txt_mapper.": "Stable Cascade", "control_model.": "ControlNet", "controlnet_cond_embedding.": "ControlNet",
    "motion_modules.": "AnimateDiff", "adaln_single.": "PixArt in one file", "double_layers.": "AuraFlow",
}  # fmt: skip
LATENT_CHANNELS = 4  # of every Stable Diffusion 1.x and 2.x
_LORA = re.compile(r"lora|lokr_|hada_|\.diff(_b)?$")
_WHOLE = "give a whole checkpoint, or a diffusers directory"


@dataclass(frozen=True, kw_only=True)
class ModelCheckpoint:
    """A checkpoint's file and its tensors, none of them read.

    Args:
        metadata: the words in its header.
    """

    file: StableFile
    weights: Mapping[str, StoredWeight]
    metadata: Mapping[str, str]

    @property
    def path(self) -> Path:
        return self.file.path

    @property
    def channels(self) -> int:
        """That the U-Net reads: 4, with a picture 8 (InstructPix2Pix), with mask and picture 9 (inpainting)."""
        return self.weights[FIRST_LAYER].shape[1]

    @property
    def second_generation(self) -> bool:
        """Stable Diffusion 2.x: OpenCLIP's text encoder."""
        return self.holds(OPEN_CLIP_PREFIX)

    def holds(self, prefix: str) -> bool:
        return any(name.startswith(prefix) for name in self.weights)

    def part(self, prefix: str) -> dict[str, StoredWeight]:
        """The tensors below a prefix, without it."""
        return {name.removeprefix(prefix): weight for name, weight in self.weights.items() if name.startswith(prefix)}


def open_checkpoint(path: Path) -> ModelCheckpoint:
    """A checkpoint of Stable Diffusion 1.x or 2.x, by its header alone.

    Raises:
        InputError: pickled, no whole safetensors file, a LoRA, or only a part of a model. UnsupportedError: another family.
    """
    if is_pickled(path):
        remedy = "convert it to .safetensors, on a machine where running its code does no harm"
        raise InputError(mismatch(f"{path}", "a .safetensors checkpoint", PICKLE_REASON, remedy))
    file = open_file(path)
    checkpoint = ModelCheckpoint(file=file, weights=stored_weights(file), metadata=open_header(file).metadata)
    _refuse_others(path, checkpoint.weights)
    if not (checkpoint.holds(CLIP_PREFIX) or checkpoint.holds(OPEN_CLIP_PREFIX)):
        raise InputError(mismatch(f"{path}", "a text encoder in the checkpoint (cond_stage_model)", "none", _WHOLE))
    return checkpoint


def open_file(path: Path) -> StableFile:
    """A file as it is now.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return StableFile.of(path)
    except OSError as error:
        raise InputError(mismatch(f"{path}", "a checkpoint", f"{error.strerror or error}", "check the path")) from error


def _refuse_others(path: Path, weights: Mapping[str, StoredWeight]) -> None:
    if any(_LORA.search(name) for name in weights) and FIRST_LAYER not in weights:
        raise InputError(mismatch(f"{path}", "a checkpoint", "a LoRA", f"give it with --adapter {path.stem.split('.')[0]}={path}"))
    for fragment, family in _OTHERS.items():
        if any(fragment in name for name in weights):
            raise UnsupportedError(mismatch(f"{path}", SUPPORTED, family, CHOOSE))
    first = weights.get(FIRST_LAYER)
    if first is None or first.ndim != 4:
        name = quoted(next(iter(weights), "no tensors"))
        raise InputError(
            mismatch(f"{path}", f"a Stable Diffusion checkpoint in its original names ({FIRST_LAYER})", f"others, such as {name}", _WHOLE)
        )
