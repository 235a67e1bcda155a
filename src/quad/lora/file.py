"""A LoRA file or directory, opened: its tensors, and what its metadata says about scale. Never pickle."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from quad.core.digests import digest, file_digest
from quad.core.errors import InputError, mismatch
from quad.core.families import Component
from quad.core.sampling import AdapterDefaults
from quad.core.slots import TEXT_ENCODER, TEXT_ENCODER_2, UNET
from quad.core.storage.stable_file import StableFile
from quad.lora.config import AGAIN, AdapterConfig, parse_json, read_config
from quad.lora.keys import DOTTED_PREFIXES, is_bundled, is_peft_key, parse_key, refuse_other_kinds
from quad.lora.kinds import PEFT_TYPES
from quad.lora.locate import PEFT_CONFIG, PEFT_NAME, WeightsFile, weights_files
from quad.lora.report.stated_defaults import stated_defaults
from quad.lora.report.trained_on import TrainedOn
from quad.lora.tensors import StoredTensor, read_lora_header, read_tensors

_METADATA_KEY = "lora_adapter_metadata"
_COMPONENTS: tuple[Component, ...] = (UNET, TEXT_ENCODER, TEXT_ENCODER_2)
_LARGEST_CONFIG = 16 * 2**20


@dataclass(frozen=True, kw_only=True)
class LoraFile:
    """An opened LoRA file.

    Args:
        path: the file, or the directory of one adapter directory per model.
        tensors: by key.
        configs: what the metadata says of each model; a model that is absent has no config.
        digest: of everything that was read.
        trained_on: the base by the trainer's metadata.
        defaults: how it is meant to be run, by its metadata.
    """

    path: Path
    tensors: dict[str, StoredTensor]
    configs: Mapping[Component, AdapterConfig] = field(default_factory=dict)
    digest: str = ""
    trained_on: TrainedOn = field(default_factory=TrainedOn)
    defaults: AdapterDefaults = field(default_factory=AdapterDefaults)

    def config(self, component: Component) -> AdapterConfig:
        """The config of one model; the default one where the metadata has none."""
        return self.configs.get(component, AdapterConfig())

    def without_embeddings(self) -> LoraFile:
        """The LoRA alone: without the embeddings that travel in its file."""
        return replace(self, tensors={key: tensor for key, tensor in self.tensors.items() if not is_bundled(key)})


def find_lora(path: Path) -> Path:
    """The weights file of `path`, a file or a directory in diffusers' or PEFT's layout; a directory of two such directories stays itself.

    Raises:
        InputError: nothing there, or pickled, or not safetensors, or a link out of the directory.
    """
    return _lone_path(path, weights_files(path))


def _lone_path(path: Path, files: list[WeightsFile]) -> Path:
    return files[0].path if len(files) == 1 and not files[0].component else path


def _packed_configs(path: Path, text: str) -> dict[Component, AdapterConfig]:
    """diffusers' metadata: one config, or one per model with that model's name before each option."""
    packed = parse_json(path, text)
    if not packed:
        return {}
    parts: dict[Component, dict[str, Any]] = {component: {} for component in _COMPONENTS}
    for prefix, component in DOTTED_PREFIXES:
        parts[component] |= {key.removeprefix(prefix): value for key, value in packed.items() if key.startswith(prefix)}
    if not any(parts.values()):
        parts = dict.fromkeys(_COMPONENTS, packed)
    return {component: read_config(path, part, PEFT_TYPES) for component, part in parts.items() if part}


def _config_file(path: Path) -> AdapterConfig:
    if path.stat().st_size > _LARGEST_CONFIG:
        raise InputError(mismatch(f"{path}", "the adapter's config", "more than 16 MiB", AGAIN))
    return read_config(path, parse_json(path, path.read_bytes()), PEFT_TYPES)


@dataclass(frozen=True, kw_only=True)
class _Part:
    """One weights file of an adapter, with the digests of what was read."""

    tensors: dict[str, StoredTensor]
    configs: dict[Component, AdapterConfig]
    parents: dict[str, str]
    trained_on: TrainedOn
    defaults: AdapterDefaults


def _open_part(file: WeightsFile, hashed: bool) -> _Part:
    stable = StableFile.of(file.path)
    refuse_other_kinds(read_lora_header(stable).entries)  # by name, before a type that only they have
    beside = None if file.config is None or file.path.name != PEFT_NAME else _config_file(file.config)  # also what it alone names
    tensors, metadata = read_tensors(stable)
    parents = {f"{file.component}weights": stable.sha256()} if hashed else {}
    configs: dict[Component, AdapterConfig] = {}
    if _METADATA_KEY in metadata:
        configs = _packed_configs(file.path, metadata[_METADATA_KEY])
    elif _needs_config(file.path, tensors):
        if file.config is None:
            raise _unknown_alpha(file.path)
        configs = dict.fromkeys(_COMPONENTS, beside or _config_file(file.config))
        parents[f"{file.component}config"] = file_digest(file.config)
    return _Part(
        tensors=tensors,
        configs=configs,
        parents=parents,
        trained_on=TrainedOn.of(metadata),
        defaults=stated_defaults(str(file.path), metadata),
    )


def _needs_config(path: Path, tensors: Mapping[str, StoredTensor]) -> bool:
    """Whether alpha stands in PEFT's config: the file is PEFT's own, by its name or by some key, and some module has no alpha."""
    if path.name != PEFT_NAME and not any(is_peft_key(key) for key in tensors):
        return False
    roles: dict[tuple[str, bool, str | None], set[str]] = {}
    for name in tensors:
        if (key := parse_key(name)) is not None:
            roles.setdefault((key.path, key.flat, key.component), set()).add(key.role)
    return any("alpha" not in of_module for of_module in roles.values())


def _unknown_alpha(path: Path) -> InputError:
    above = path.parent.parent / PEFT_CONFIG
    give = (
        f"the directory that holds both, or a copy of {PEFT_CONFIG} from the directory above"
        if above.is_file()
        else "the trainer's directory"
    )
    return InputError(mismatch(f"{path}", f"{PEFT_CONFIG} beside it", "PEFT's weights without it", f"alpha is unknown; give {give}"))


def _of_component(component: str, key: str) -> str:
    """The key with its model's name before it, which the directory gives where the key does not."""
    return key if key.startswith(tuple(prefix for prefix, _ in DOTTED_PREFIXES)) else f"{component}{key}"


def _open_parts(path: Path, files: Iterable[WeightsFile], hashed: bool) -> list[_Part]:
    try:
        return [_open_part(file, hashed) for file in files]
    except OSError as error:
        raise InputError(mismatch(f"{path}", "a LoRA file", f"{error.strerror or error}", "check its permissions")) from error


def require_lora(path: Path) -> None:
    """Refuse a LoRA by its place, its header and its config, before anything large is read.

    Raises:
        InputError, UnsupportedError: as `open_lora`, or it is of a kind that is not read.
    """
    _open_parts(path, weights_files(path), hashed=False)


def defaults_of(path: Path) -> AdapterDefaults:
    """How a LoRA is meant to be run, by the metadata of its file; its header alone is read.

    Raises:
        InputError: it is missing or no safetensors, or its metadata says what no run could take.
    """
    file = weights_files(path)[0]
    try:
        return stated_defaults(str(file.path), read_lora_header(StableFile.of(file.path)).metadata)
    except OSError as error:
        raise InputError(mismatch(f"{path}", "a LoRA file", f"{error.strerror or error}", "check its permissions")) from error


def open_lora(path: Path) -> LoraFile:
    """Open a LoRA file or directory, with the scale rule its metadata or `adapter_config.json` gives.

    Raises:
        InputError: missing, pickled, truncated, a config of wrong types, or PEFT keys without their config.
        UnsupportedError: the config says it is no adapter of those read, or the tensors are no floats.
    """
    files = weights_files(path)
    parts = _open_parts(path, files, hashed=True)
    parents = {name: value for part in parts for name, value in part.parents.items()}
    tensors: dict[str, StoredTensor] = {}
    configs: dict[Component, AdapterConfig] = {}
    for file, part in zip(files, parts, strict=True):
        tensors |= {_of_component(file.component, key): tensor for key, tensor in part.tensors.items()}
        configs |= {model: config for model, config in part.configs.items() if file.component in ("", f"{model}.")}
    return LoraFile(
        path=_lone_path(path, files),
        tensors=tensors,
        configs=configs,
        digest=next(iter(parents.values())) if len(parents) == 1 else digest(parents),
        trained_on=parts[0].trained_on,
        defaults=parts[0].defaults,
    )
