"""The family and parts of a one-file checkpoint, told from the names and shapes of its tensors; what is none of ours is refused by name.

Original names are those of the training code (Rombach et al. 2022, latent diffusion): `model.diffusion_model`, `first_stage_model`, and
those of the text encoders, which tell the family. What shapes do not tell, the width of an attention head, stands in its table.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from quad.core.errors import InputError, UnsupportedError, mismatch
from quad.core.families import FAMILIES, SIGNS, SUPPORTED, Family, OneFile
from quad.core.storage.pickles import PICKLE_REASON, is_pickled
from quad.core.storage.stable_file import StableFile
from quad.lora.quote import quoted
from quad.model.base.family import CHOOSE
from quad.model.base.stored_weights import StoredWeight, stored_weights
from quad.model.base.weight_files import open_header

UNET_PREFIX, VAE_PREFIX, EMA_PREFIX = "model.diffusion_model.", "first_stage_model.", "model_ema."
FIRST_LAYER = f"{UNET_PREFIX}input_blocks.0.0.weight"
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
    def family(self) -> Family:
        """By its text encoder."""
        return next(family for family in FAMILIES if family.one_file and self.holds(family.one_file.texts[0].prefix))

    @property
    def table(self) -> OneFile:
        """Its family's facts of one-file checkpoints."""
        table = self.family.one_file
        assert table is not None, "a family of checkpoints"
        return table

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
    if not any(family.one_file and checkpoint.holds(family.one_file.texts[0].prefix) for family in FAMILIES):
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
    for signs in SIGNS:
        if any(fragment in name for fragment in signs.tensors for name in weights):
            raise UnsupportedError(mismatch(f"{path}", SUPPORTED, signs.name, CHOOSE))
    first = weights.get(FIRST_LAYER)
    if first is None or first.ndim != 4:
        name = quoted(next(iter(weights), "no tensors"))
        raise InputError(
            mismatch(f"{path}", f"a Stable Diffusion checkpoint in its original names ({FIRST_LAYER})", f"others, such as {name}", _WHOLE)
        )
