"""Finding and opening a LoRA file or directory: its tensors, and what its metadata says about scale. Never pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from quad.core.digests import digest, file_digest
from quad.core.errors import InputError, UnsupportedError, mismatch
from quad.lora.config import AGAIN, AdapterConfig, parse_json, read_config
from quad.lora.keys import Component, shown
from quad.lora.places import PEFT_CONFIG, PEFT_NAME, PICKLE_REASON, PICKLED_SUFFIXES, Place, find_places, first_bytes

__all__ = ["PICKLED_SUFFIXES", "PICKLE_REASON", "LoraFile", "find_lora", "open_lora", "read_tensors"]

_METADATA_KEY = "lora_adapter_metadata"
_COMPONENTS: tuple[Component, ...] = ("unet", "text_encoder")
_PREFIXES: tuple[tuple[str, Component], ...] = (("unet.", "unet"), ("transformer.", "unet"), ("text_encoder.", "text_encoder"))
_REAL_TYPES = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
_LARGEST_CONFIG = 16 * 2**20


@dataclass(frozen=True)
class LoraFile:
    """An opened LoRA file.

    Args:
        path: the file, or the directory of one adapter directory per model.
        tensors: by key.
        configs: what the metadata says of each model; a model that is absent has no config.
        digest: of everything that was read.
        trained_on: the base's name in the trainer's metadata, "" where it says none.
    """

    path: Path
    tensors: dict[str, Tensor]
    configs: Mapping[Component, AdapterConfig] = field(default_factory=dict)
    digest: str = ""
    trained_on: str = ""

    def config(self, component: Component) -> AdapterConfig:
        return self.configs.get(component, AdapterConfig())


def find_lora(path: Path) -> Path:
    """The weights file of `path`, a file or a directory in diffusers' or PEFT's layout; a directory of two such directories stays itself.

    Raises:
        InputError: nothing there, or pickled, or not safetensors, or a link out of the directory.
    """
    places = find_places(path)
    return places[0].weights if len(places) == 1 and not places[0].component else path


def _tensor(file: Any, path: Path, key: str) -> Tensor:
    dtype = str(file.get_slice(key).get_dtype())
    # Trainers write alpha as a whole number too; nothing else of a LoRA is one.
    if dtype not in _REAL_TYPES and not (key.endswith(".alpha") and dtype in ("I64", "I32", "I16", "I8", "U8")):
        raise UnsupportedError(mismatch(f"{path}, '{shown(key)}'", "floats", dtype, "save it in float16 or float32"))
    tensor: Tensor = file.get_tensor(key)
    return tensor


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        InputError: the file is truncated or no safetensors file.
        UnsupportedError: it holds whole or complex numbers, or floats of a kind that means nothing alone.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {key: _tensor(file, path, key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError, RuntimeError, MemoryError) as error:
        found = first_bytes(path) or f"{error}".partition("\n")[0][:200] or type(error).__name__
        raise InputError(mismatch(f"{path}", "a whole safetensors file", found, "fetch or save it again")) from error


def _packed_configs(path: Path, text: str) -> dict[Component, AdapterConfig]:
    """diffusers' metadata: one config, or one per model with that model's name before each option."""
    packed = parse_json(path, text)
    if not packed:
        return {}
    parts: dict[Component, dict[str, Any]] = {component: {} for component in _COMPONENTS}
    for prefix, component in _PREFIXES:
        parts[component] |= {key.removeprefix(prefix): value for key, value in packed.items() if key.startswith(prefix)}
    if not any(parts.values()):
        parts = dict.fromkeys(_COMPONENTS, packed)
    return {component: read_config(path, part) for component, part in parts.items() if part}


def _config_beside(place: Place) -> dict[str, Any]:
    assert place.config is not None
    if place.config.stat().st_size > _LARGEST_CONFIG:
        raise InputError(mismatch(f"{place.config}", "the adapter's config", "more than 16 MiB", AGAIN))
    return parse_json(place.config, place.config.read_bytes())


@dataclass(frozen=True)
class _Part:
    tensors: dict[str, Tensor]
    configs: dict[Component, AdapterConfig]
    parents: dict[str, str]
    trained_on: str


def _open_part(place: Place) -> _Part:
    file = place.weights
    tensors, metadata = read_tensors(file)
    parents = {f"{place.component}weights": file_digest(file)}
    configs: dict[Component, AdapterConfig] = {}
    if _METADATA_KEY in metadata:
        configs = _packed_configs(file, metadata[_METADATA_KEY])
    elif place.config is not None:
        found = read_config(place.config, _config_beside(place))
        configs = dict.fromkeys(_COMPONENTS, found)
        parents[f"{place.component}config"] = file_digest(place.config)
    elif any(key.startswith("base_model.model.") for key in tensors):
        raise InputError(
            mismatch(
                f"{file}", f"{PEFT_CONFIG} beside {PEFT_NAME}", "PEFT keys without it", "alpha is unknown; give the adapter's directory"
            )
        )
    said = metadata.get("modelspec.architecture") or metadata.get("ss_base_model_version") or ""
    return _Part(tensors, configs, parents, json.dumps(said[:60]) if said else "")


def open_lora(path: Path) -> LoraFile:
    """Open a LoRA file or directory, with the scale rule its metadata or `adapter_config.json` gives.

    Raises:
        InputError: missing, pickled, truncated, a config of wrong types, or PEFT keys without their config.
        UnsupportedError: the config says it is no adapter of those read, or the tensors are no floats.
    """
    places = find_places(path)
    try:
        parts = [_open_part(place) for place in places]
    except OSError as error:
        raise InputError(mismatch(f"{path}", "a LoRA file", f"{error.strerror or error}", "check its permissions")) from error
    parents = {name: value for part in parts for name, value in part.parents.items()}
    tensors: dict[str, Tensor] = {}
    configs: dict[Component, AdapterConfig] = {}
    for place, part in zip(places, parts, strict=True):
        tensors |= {f"{place.component}{key}": tensor for key, tensor in part.tensors.items()}
        configs |= {one: config for one, config in part.configs.items() if not place.component or place.component == f"{one}."}
    file = places[0].weights if len(places) == 1 and not places[0].component else path
    whole = next(iter(parents.values())) if len(parents) == 1 else digest(parents)
    return LoraFile(file, tensors, configs, whole, parts[0].trained_on)
