"""An autoencoder from elsewhere: in original names, in a file of its own or in a checkpoint, or a diffusers directory (`--vae`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import diffusers
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

from quad.core.errors import InputError, mismatch
from quad.core.storage.links import require_contained
from quad.core.storage.pickles import PICKLE_REASON, is_pickled
from quad.core.storage.stable_file import StableFile
from quad.model.base.checkpoint.configs import vae_config
from quad.model.base.checkpoint.layout import VAE_PREFIX, open_file
from quad.model.base.load_component import DIFFUSION_STEM, StoredComponent, empty_module, find_component, fitted
from quad.model.base.stored_weights import StoredWeight, stored_weights

VAE = "vae"
VAES = {"AutoencoderTiny": diffusers.AutoencoderTiny, "AutoencoderKL": diffusers.AutoencoderKL}


def open_vae(path: Path, scaling: float) -> StoredComponent:
    """The autoencoder that `--vae` names.

    Args:
        path: a `.safetensors` file in original names, an autoencoder's directory, or that of a model which has one.
        scaling: of latents of the model's family, which a file in original names does not say.

    Raises:
        InputError: there is none, or it is pickled or truncated. UnsupportedError: of a class that quad does not know.
    """
    if path.is_dir():
        folder = path / VAE if (path / VAE).is_dir() else path
        require_contained(folder, (), "autoencoder")
        return find_component(folder, VAES, DIFFUSION_STEM)
    if not path.is_file():
        raise InputError(mismatch(f"--vae {path}", "a .safetensors file or a directory", "none", "check the path"))
    if is_pickled(path):
        raise InputError(mismatch(f"--vae {path}", "a .safetensors file", PICKLE_REASON, "convert it to safetensors"))
    if path.with_name("config.json").is_file():
        return find_component(path.parent, VAES, path.stem)
    file = open_file(path)
    stored = stored_weights(file)
    prefix = VAE_PREFIX if any(name.startswith(VAE_PREFIX) for name in stored) else ""
    return original_vae(file, {name.removeprefix(prefix): weight for name, weight in stored.items() if name.startswith(prefix)}, scaling)


def original_vae(file: StableFile, weights: Mapping[str, StoredWeight], scaling: float) -> StoredComponent:
    """An autoencoder in original names.

    Args:
        weights: without a prefix.
        scaling: of its latents.

    Raises:
        InputError: they are no autoencoder's of Stable Diffusion.
    """
    config = vae_config(file.path, weights, scaling)
    converted = convert_ldm_vae_checkpoint(dict(weights), config)
    stored = {name: weight for name, weight in converted.items() if weight is not None}
    return fitted(empty_module(file.path, diffusers.AutoencoderKL, config), stored, [file], VAE)
