"""The weight files of an adapter: one file, diffusers' or PEFT's directory, or one PEFT directory per model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from quad.core.errors import InputError, mismatch
from quad.core.slots import TEXT_ENCODER, TEXT_ENCODER_2, UNET
from quad.core.storage.links import contained
from quad.core.storage.pickles import PICKLE_REASON, is_pickled

DIFFUSERS_NAME, PEFT_NAME, PEFT_CONFIG = "pytorch_lora_weights.safetensors", "adapter_model.safetensors", "adapter_config.json"

# A transformer that denoises stands where the U-Net stands.
MODEL_DIRECTORIES = ((UNET, UNET), ("transformer", UNET), (TEXT_ENCODER, TEXT_ENCODER), (TEXT_ENCODER_2, TEXT_ENCODER_2))


@dataclass(frozen=True)
class WeightsFile:
    """One weights file.

    Args:
        config: PEFT's config beside it, None without one.
        component: `unet.`, `text_encoder.` or `text_encoder_2.` where the directory's name says which model the keys are of, else "".
    """

    path: Path
    config: Path | None = None
    component: str = ""


def refuse_pickle(path: Path) -> None:
    """Refuse a file that is named as pickled weights are.

    Raises:
        InputError: it is.
    """
    if is_pickled(path):
        raise InputError(mismatch(f"{path}", "a .safetensors file", PICKLE_REASON, "convert it to safetensors"))


def weights_files(path: Path) -> list[WeightsFile]:
    """The weights files of an adapter: one, or one per model.

    Raises:
        InputError: nothing there, or pickled, or a link out of the directory, or not to be read.
    """
    try:
        return _in_directory(path) if path.is_dir() else [_lone_file(path)]
    except OSError as error:
        raise InputError(mismatch(f"{path}", "a LoRA file", f"{error.strerror or error}", "check the path")) from error


def _lone_file(path: Path) -> WeightsFile:
    refuse_pickle(path)
    if not path.is_file():
        is_address = path.parts[:1] in (("http:",), ("https:",))
        remedy = "fetch it and give the file, or give its hub id, owner/name" if is_address else "check the path"
        raise InputError(mismatch(f"{path}", "a LoRA file", "no such file", remedy))
    return WeightsFile(path, _config_beside(path))


def _config_beside(weights: Path) -> Path | None:
    config = weights.with_name(PEFT_CONFIG)
    return contained(weights.parent, config, "adapter") if config.is_file() else None


def _in_directory(directory: Path) -> list[WeightsFile]:
    if (weights := _named_as_saved(directory)) is not None:
        return [weights]
    per_model = []
    for folder, component in MODEL_DIRECTORIES:
        if (directory / folder).is_dir() and (weights := _named_as_saved(directory / folder)) is not None:
            per_model.append(WeightsFile(weights.path, weights.config, f"{component}."))
    for weights in per_model:
        contained(directory, weights.path, "adapter")
    if not per_model:
        for file in sorted(directory.iterdir()):
            refuse_pickle(file)
        if (directory / "model_index.json").is_file():
            raise InputError(mismatch(f"{directory}", "a LoRA", "a whole model, by its model_index.json", "give it as MODEL"))
        raise InputError(mismatch(f"{directory}", f"{DIFFUSERS_NAME} or {PEFT_NAME}", "neither", "name the file itself"))
    return per_model


def _named_as_saved(directory: Path) -> WeightsFile | None:
    """The file that diffusers or PEFT has saved in a directory."""
    for name in (DIFFUSERS_NAME, PEFT_NAME):
        if (directory / name).is_file():
            return WeightsFile(contained(directory, directory / name, "adapter"), _config_beside(directory / name))
    return None
