"""The family that a model is of, told from its configs before any weight is read, and what its table says about it.

The tables are `quad.core.families`; here they are held against a directory.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import msgspec

from quad.core.errors import InputError, UnsupportedError, mismatch
from quad.core.families import FAMILIES, SUPPORTED, ConfigRule, Family, Layout, family_of_class
from quad.core.manifest import Beside
from quad.core.slots import UNET
from quad.model.base.toyland_file import WORLD_FILE
from quad.model.base.weight_files import INDEX_FILE, read_config, read_index

CHOOSE = "choose such a model"
# Stable Diffusion's first configs say 32 and mean this; diffusers' pipelines mend it below 0.9.
_TRAINED_SIDE = 64
_FIRST_VERSIONS = re.compile(r"0\.[0-8]\.")
Inputs = tuple[Beside, ...] | msgspec.UnsetType


def loaded_classes(classes: Mapping[str, str]) -> dict[str, Any]:
    """The classes that a table names as `module:Class`, by the same keys."""
    names = {key: name.partition(":") for key, name in classes.items()}
    return {key: getattr(importlib.import_module(module), name) for key, (module, _, name) in names.items()}


def family_in(folders: Collection[str]) -> Family:
    """The family with the most of its folders there, of those whose denoiser's is; the first where there is none."""
    present = [family for family in FAMILIES if family.denoiser.folder in folders] or list(FAMILIES[:1])
    return max(present, key=lambda family: len(set(family.folders).intersection(folders)))


def family_of(directory: Path) -> Family:
    """The family of a model directory, by the folder of its denoiser and that one's config."""
    present = [family for family in FAMILIES if (directory / family.denoiser.folder).is_dir()] or list(FAMILIES[:1])
    config = _denoiser_config(directory / present[0].denoiser.folder)
    fitting = [family for family in present if _says(config, family.denoiser.config_marks)]
    return max(fitting or present, key=lambda family: len(family.denoiser.config_marks))


def _denoiser_config(folder: Path) -> Mapping[str, Any]:
    try:
        return read_config(folder / "config.json")
    except InputError:
        return {}  # who reads it next says so


def _says(config: Mapping[str, Any], fields: Mapping[str, Any]) -> bool:
    return all(config.get(name) == value for name, value in fields.items())


def denoiser_folder(directory: Path) -> Path:
    """The folder of the denoiser: the family's, whether it is there or not."""
    return directory / family_of(directory).denoiser.folder


def check_family(directory: Path) -> None:
    """Refuse a directory that holds no model of a family.

    Raises:
        UnsupportedError: another pipeline, or a denoiser of another kind. InputError: a config that is no JSON.
    """
    if (directory / WORLD_FILE).is_file():
        return
    if (directory / INDEX_FILE).is_file():
        pipeline = str(read_config(directory / INDEX_FILE).get("_class_name"))
        if not any(pipeline in family.pipelines for family in FAMILIES):
            raise UnsupportedError(mismatch(f"{directory / INDEX_FILE}", SUPPORTED, family_of_class(pipeline), CHOOSE))
    family = family_of(directory)
    config = directory / family.denoiser.folder / "config.json"
    if config.is_file():  # where there is none, opening says so
        check_denoiser(family, config.parent, read_config(config))


def check_denoiser(family: Family, folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse a denoiser that its family's table does not allow.

    Raises:
        UnsupportedError: it names the field of the config.
    """
    kind = str(config.get("_class_name"))
    if kind not in family.denoiser.classes and family.denoiser.folder != UNET:
        raise UnsupportedError(mismatch(f"{folder}", SUPPORTED, family_of_class(kind), CHOOSE))
    for rule in family.denoiser.rules:
        if _says(config, rule.when) and (refused := _refused_values(rule, config)):
            shown = rule.shown.format(value=refused[0]) if rule.shown else f"{rule.name}={refused[0]!r}"
            raise UnsupportedError(mismatch(f"{folder}", rule.expected, shown, CHOOSE))


def _refused_values(rule: ConfigRule, config: Mapping[str, Any]) -> list[Any]:
    value = config.get(rule.name, rule.default)
    entries = value if isinstance(value, list) else [value]
    return [entry for entry in entries if entry in rule.refused or not (rule.allowed is None or entry in rule.allowed)]


def denoiser_layout(family: Family, folder: Path, config: Mapping[str, Any], latent_channels: int) -> Layout:
    """How the denoiser's input is laid out, by its channels.

    Raises:
        UnsupportedError: a number of channels that means nothing here.
    """
    channels, outputs = int(config["in_channels"]), int(config["out_channels"])
    width = {"mask": 1, "condition": latent_channels, "raw-condition": latent_channels}
    layouts = {latent_channels + sum(width[part] for part in layout.beside): layout for layout in family.denoiser.layouts}
    allowed = (latent_channels, 2 * latent_channels) if family.denoiser.variance else (latent_channels,)
    if outputs not in allowed:
        raise UnsupportedError(mismatch(f"{folder}", f"{_either([f'{number}' for number in allowed])} output channels", outputs, CHOOSE))
    if channels not in layouts:
        shown = [f"{number} ({layouts[number].shown})" if layouts[number].shown else f"{number}" for number in sorted(layouts)]
        raise UnsupportedError(mismatch(f"{folder}", f"{_either(shown)} input channels", f"in_channels={channels}", CHOOSE))
    return layouts[channels]


def _either(words: list[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]


def denoiser_inputs(family: Family, folder: Path, config: Mapping[str, Any], latent_channels: int) -> Inputs:
    """The inputs that the denoiser reads beside the latent; unset in the reference world and where it reads nothing.

    Raises:
        UnsupportedError: as `denoiser_layout`.
    """
    if (folder.parent / WORLD_FILE).is_file() and int(config["out_channels"]) == latent_channels:
        return msgspec.UNSET
    return denoiser_layout(family, folder, config, latent_channels).beside or msgspec.UNSET


def pipeline_class(directory: Path) -> str:
    """diffusers' class for the directory, whose name says what the class mends in the scheduler; the plain one where none is named."""
    named = read_index(directory).get("_class_name")
    return named if isinstance(named, str) else FAMILIES[0].pipelines[0]


def index_scheduler(directory: Path) -> str | None:
    """The scheduler's class in `model_index.json`, which goes before the one in the scheduler's own config; None where none is named."""
    entry = read_index(directory).get("scheduler")
    named = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
    return named if isinstance(named, str) else None


def zeros_for_empty(directory: Path, family: Family) -> bool:
    """Whether an empty negative prompt is zeros, as `model_index.json` says or the family has it."""
    return family.zeros_for_empty and bool(read_index(directory).get("force_zeros_for_empty_prompt", True))


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
