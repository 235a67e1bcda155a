"""`toyland.json`: what diffusers' layout has no place for, in a model of the reference world."""

from __future__ import annotations

import math
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


def latent_spec(toyland: Toyland, vae_config: Any, beside: tuple[Beside, ...] | msgspec.UnsetType, *, statistics: bool) -> LatentSpec:
    """The latent space of an autoencoder, scaled as the world says, or as its own config does.

    Args:
        statistics: the mean and spread of each channel count, where the config has both.

    Raises:
        InputError: the world's numbers do not fit the autoencoder, or those of the config do not.
    """
    channels = int(vae_config.latent_channels)
    blocks = vae_config.get("encoder_block_out_channels") or vae_config["block_out_channels"]
    factors = (vae_config.scaling_factor, vae_config.get("shift_factor") or 0.0)
    if not all(isinstance(number, int | float) for number in factors):
        listed = ", ".join(map(repr, factors))
        raise InputError(
            mismatch(f"{toyland.file.parent / 'vae'}", "numbers as scaling_factor and shift_factor", listed, "mend config.json")
        )
    mean, spread = _statistics(toyland.file.parent / "vae", vae_config, channels) if statistics else ((0.0,) * channels, (1.0,) * channels)
    scale = toyland.settings.latent_scale or tuple(float(factors[0]) / deviation for deviation in spread)
    shift = toyland.settings.latent_shift or tuple(float(factors[1]) + number for number in mean)
    if len(scale) != channels or len(shift) != channels or 0.0 in scale:
        counts = f"{len(scale)} and {len(shift)}"
        raise InputError(mismatch(f"{toyland.file}", f"{channels} latent scales (not 0) and shifts", counts, "mend the file"))
    return LatentSpec(channels=channels, factor=2 ** (len(blocks) - 1), scale=scale, shift=shift, beside=beside)


def _statistics(place: Path, vae_config: Any, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and spread of each channel, where the config has both.

    Raises:
        InputError: they are no numbers, or not as many as channels.
    """
    stated = [vae_config.get(name) for name in ("latents_mean", "latents_std")]
    if None in stated:
        return (0.0,) * channels, (1.0,) * channels
    mean, spread = (tuple(numbers) if isinstance(numbers, list | tuple) else () for numbers in stated)
    real = all(isinstance(number, int | float) and math.isfinite(number) for number in (*mean, *spread))
    if not real or len(mean) != channels or len(spread) != channels or min(spread) <= 0.0:
        expected = f"{channels} numbers each as latents_mean and latents_std, the latter above 0"
        raise InputError(mismatch(f"{place}", expected, f"{stated[0]!r} and {stated[1]!r}", "mend config.json"))
    return tuple(map(float, mean)), tuple(map(float, spread))
