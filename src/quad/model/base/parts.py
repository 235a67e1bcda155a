"""The parts of a model before their weights are read, from whatever it lies in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from quad.core.errors import InputError, mismatch
from quad.core.families import FAMILIES, Family
from quad.core.storage.links import require_contained
from quad.model.base.checkpoint.autoencoder import VAE, VAES, open_vae
from quad.model.base.family import check_family, family_of, index_scheduler, loaded_classes, pipeline_class, zeros_for_empty
from quad.model.base.load_component import DIFFUSION_STEM, TRANSFORMERS_STEM, StoredComponent, find_component
from quad.model.base.noise_schedule import scheduler_class
from quad.model.base.text.stored_texts import StoredTexts, joined_texts
from quad.model.base.text.tokenizer_files import read_tokenizer

_FOLDERS = (*dict.fromkeys(folder for family in FAMILIES for folder in family.folders), VAE, "scheduler")


@dataclass(frozen=True, kw_only=True)
class ModelParts:
    """The parts of a model.

    Args:
        family: what it is one of.
        texts: what reads a prompt.
        scheduler: its config.
        pipeline: diffusers' class for the model.
        index_class: the scheduler's class in `model_index.json`; None where none is named.
        notes: what was read otherwise than a user may think, a line each.
    """

    family: Family
    unet: StoredComponent
    vae: StoredComponent
    texts: StoredTexts
    scheduler: Path
    pipeline: str
    index_class: str | None = None
    notes: tuple[str, ...] = ()


def directory_parts(model: Path, vae: Path | None = None) -> ModelParts:
    """The parts of a directory in diffusers' layout.

    Args:
        vae: in place of the directory's own.

    Raises:
        InputError: no model there, weights missing, pickled, truncated or of another config, no tokenizer.
        UnsupportedError: a family or a class that quad does not know.
    """
    if not model.is_dir():
        raise InputError(mismatch(f"{model}", "a diffusers model directory, or a .safetensors checkpoint", "none", "check the path"))
    require_contained(model, _FOLDERS, "model")
    _require_denoiser(model)
    check_family(model)
    family, scheduler, index_class = family_of(model), model / "scheduler" / "scheduler_config.json", index_scheduler(model)
    config_class = scheduler_class(scheduler)
    denoiser = family.denoiser
    unet = find_component(model / denoiser.folder, loaded_classes(denoiser.classes), DIFFUSION_STEM)
    autoencoder = find_component(model / VAE, VAES, DIFFUSION_STEM) if vae is None else open_vae(vae, family.vae_scaling)
    encoders = [find_component(model / table.folder, loaded_classes(table.classes), TRANSFORMERS_STEM) for table in family.texts]
    tokenizers = [
        read_tokenizer(model / table.tokenizer, encoder.config, table.caption_length)
        for table, encoder in zip(family.texts, encoders, strict=True)
    ]
    return ModelParts(
        family=family,
        unet=unet,
        vae=autoencoder,
        texts=joined_texts(model, family, encoders, tokenizers, zeros_for_empty(model, family)),
        scheduler=scheduler,
        pipeline=pipeline_class(model),
        index_class=index_class,
        notes=_scheduler_notes(config_class, index_class),
    )


def _require_denoiser(model: Path) -> None:
    """Refuse a directory that holds a one-file checkpoint and no model of its own.

    Raises:
        InputError: with the file's name.
    """
    if not any((model / family.denoiser.folder).exists() for family in FAMILIES):
        files = sorted(file.name for file in model.glob("*.safetensors"))
        if files:
            expected = "the parts of a diffusers model"
            raise InputError(mismatch(f"{model}", expected, f"a file {files[0]}", "name a checkpoint by its file, not by its directory"))


def _scheduler_notes(config_class: str, index_class: str | None) -> tuple[str, ...]:
    if index_class in (None, config_class):
        return ()
    return (f"scheduler: {index_class}, as model_index.json says; scheduler_config.json says {config_class}",)
