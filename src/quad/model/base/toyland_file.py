"""`toyland.json`: what diffusers' layout has no place for, in a model of the reference world."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from quad.core.errors import InputError, mismatch
from quad.core.manifest import Beside, LatentSpec, TaskSpec
from quad.model.base.weight_files import read_config

WORLD_FILE = "toyland.json"


class ToylandSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The file's fields; all may be left out."""

    latent_scale: tuple[float, ...] | None = None
    latent_shift: tuple[float, ...] | None = None
    size: int | None = None
    tasks: dict[str, TaskSpec] = {}


@dataclass(frozen=True)
class Toyland:
    """A model directory's settings of the reference world.

    Args:
        file: where they stand, whether it is there or not.
        settings: all left out where there is no such file.
    """

    file: Path
    settings: ToylandSettings


def read_toyland(directory: Path) -> Toyland:
    """The settings in a model directory's `toyland.json`.

    Raises:
        InputError: it is there and not well-formed.
    """
    file = directory / WORLD_FILE
    if not file.is_file():
        return Toyland(file, ToylandSettings())
    try:
        return Toyland(file, msgspec.convert(read_config(file), ToylandSettings))
    except msgspec.ValidationError as error:
        raise InputError(mismatch(f"{file}", "latent_scale, latent_shift, size, tasks", f"{error}", "mend the file")) from error


def latent_spec(toyland: Toyland, vae_config: Any, beside: tuple[Beside, ...] | msgspec.UnsetType) -> LatentSpec:
    """The latent space of an autoencoder, scaled as the world says, or as its own config does.

    Raises:
        InputError: the world's numbers do not fit the autoencoder.
    """
    channels = int(vae_config.latent_channels)
    blocks = vae_config.get("encoder_block_out_channels") or vae_config["block_out_channels"]
    factors = (vae_config.scaling_factor, vae_config.get("shift_factor") or 0.0)
    if not all(isinstance(number, int | float) for number in factors):
        listed = ", ".join(map(repr, factors))
        raise InputError(
            mismatch(f"{toyland.file.parent / 'vae'}", "numbers as scaling_factor and shift_factor", listed, "mend config.json")
        )
    scale = toyland.settings.latent_scale or (float(factors[0]),) * channels
    shift = toyland.settings.latent_shift or (float(factors[1]),) * channels
    if len(scale) != channels or len(shift) != channels or 0.0 in scale:
        counts = f"{len(scale)} and {len(shift)}"
        raise InputError(mismatch(f"{toyland.file}", f"{channels} latent scales (not 0) and shifts", counts, "mend the file"))
    return LatentSpec(channels=channels, factor=2 ** (len(blocks) - 1), scale=scale, shift=shift, beside=beside)
