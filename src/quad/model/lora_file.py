"""Finding and opening a LoRA file: its tensors, and what its metadata says about scale. Never pickle."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from quad.core.digests import digest, file_digest
from quad.core.errors import InputError, UnsupportedError, mismatch

PICKLED_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
PICKLE_REASON = "a pickled file, which can run code when it is opened"

_DIFFUSERS_NAME, _PEFT_NAME, _PEFT_CONFIG = "pytorch_lora_weights.safetensors", "adapter_model.safetensors", "adapter_config.json"
_METADATA_KEY = "lora_adapter_metadata"
# Initialisations that also change the base's own weights, so that the two matrices alone are not the adapter.
_BASE_CHANGING = ("pissa", "olora", "corda", "loftq")


@dataclass(frozen=True)
class ScaleRule:
    """How alpha becomes a factor: `alpha / r`, or `alpha / sqrt(r)` with rsLoRA; 1 where no config says otherwise.

    Args:
        config: PEFT's LoraConfig as JSON, empty for a file without one. Source: PEFT `LoraConfig`.
    """

    config: dict[str, Any] = field(default_factory=dict)

    def _of(self, path: str, patterns: str, plain: str) -> float:
        # PEFT's rule: the first pattern that matches the end of the path at a dot, as a regular expression.
        for pattern, value in (self.config.get(patterns) or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", path):
                return float(value)
        return float(self.config.get(plain, 8))

    def scale(self, path: str, rank: int, alpha: float | None) -> float:
        """The factor that multiplies B A for the module at `path`; `alpha` is the file's own tensor for it, if any.

        Raises:
            InputError: the config gives the module another rank than its tensors have.
        """
        if alpha is not None:
            return alpha / rank
        if not self.config:
            return 1.0
        said = self._of(path, "rank_pattern", "r")
        if said != rank:
            raise InputError(
                mismatch(f"{path!r}", f"rank {said:g} (the adapter's config)", f"rank {rank}", "use the config saved with these weights")
            )
        return self._of(path, "alpha_pattern", "lora_alpha") / (math.sqrt(rank) if self.config.get("use_rslora") else rank)


@dataclass(frozen=True)
class LoraFile:
    """An opened LoRA file: tensors by key, the scale rule, and the digest of everything that was read."""

    path: Path
    tensors: dict[str, Tensor]
    rule: ScaleRule
    digest: str


def refuse_pickle(path: Path) -> None:
    """Raise InputError if `path` is named like a pickled weight file."""
    if path.suffix in PICKLED_SUFFIXES:
        raise InputError(mismatch(f"{path}", "a .safetensors file", PICKLE_REASON, "convert it to safetensors"))


def find_lora(path: Path) -> Path:
    """The weights file of `path`, a file or a directory in diffusers' or PEFT's layout.

    Raises:
        InputError: nothing there, or pickled, or not safetensors.
    """
    if path.is_dir():
        for name in (_DIFFUSERS_NAME, _PEFT_NAME):
            if (path / name).is_file():
                return path / name
        for file in sorted(path.iterdir()):
            refuse_pickle(file)
        raise InputError(mismatch(f"{path}", f"{_DIFFUSERS_NAME} or {_PEFT_NAME}", "neither", "name the file itself"))
    refuse_pickle(path)
    if not path.is_file():
        raise InputError(mismatch(f"{path}", "a LoRA file", "no such file", "check the path"))
    return path


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        InputError: the file is truncated or no safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(mismatch(f"{path}", "a whole safetensors file", f"{error}".splitlines()[0], "fetch or save it again")) from error


def _parse_config(where: Path, text: str | bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise InputError(mismatch(f"{where}", "the adapter's config in JSON", f"{error}", "save the adapter again")) from error
    if not isinstance(found, dict):
        raise InputError(mismatch(f"{where}", "a JSON object as the adapter's config", type(found).__name__, "save the adapter again"))
    return found


def _check_config(where: Path, config: dict[str, Any]) -> None:
    if config.get("use_dora"):
        raise UnsupportedError(mismatch(f"{where}", "plain LoRA", "DoRA (use_dora)", "convert it to LoRA"))
    kind = str(config.get("peft_type") or "LORA").rpartition(".")[2].upper()
    if kind != "LORA":
        raise UnsupportedError(mismatch(f"{where}", "plain LoRA", f"{kind} (peft_type)", "convert it to LoRA"))
    start = str(config.get("init_lora_weights", "")).lower()
    if start.startswith(_BASE_CHANGING):
        raise UnsupportedError(
            mismatch(f"{where}", "an adapter of the unchanged base", f"init_lora_weights={start!r}", "convert it to plain LoRA")
        )


def open_lora(path: Path) -> LoraFile:
    """Open a LoRA file or directory, with the scale rule its metadata or `adapter_config.json` gives.

    Raises:
        InputError: missing, pickled, truncated, or PEFT keys without their config.
        UnsupportedError: the config says it is not plain LoRA.
    """
    file = find_lora(path)
    tensors, metadata = read_tensors(file)
    beside = file.with_name(_PEFT_CONFIG)
    config: dict[str, Any] = {}
    parents = {"weights": file_digest(file)}
    if _METADATA_KEY in metadata:
        packed = _parse_config(file, metadata[_METADATA_KEY])
        config = {key.removeprefix("unet."): value for key, value in packed.items() if not key.startswith("text_encoder")}
    elif file.name == _PEFT_NAME and beside.is_file():
        config = _parse_config(beside, beside.read_bytes())
        parents["config"] = file_digest(beside)
    elif any(key.startswith("base_model.model.") for key in tensors):
        raise InputError(
            mismatch(
                f"{file}", f"{_PEFT_CONFIG} beside {_PEFT_NAME}", "PEFT keys without it", "alpha is unknown; give the adapter's directory"
            )
        )
    _check_config(file, config)
    return LoraFile(file, tensors, ScaleRule(config), parents["weights"] if len(parents) == 1 else digest(parents))
