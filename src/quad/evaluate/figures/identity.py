"""Digests of everything that measured figures depend on: figures that are kept in files must not outlive what they were measured from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from quad.core.digests import digest, file_digest
from quad.core.storage.reading import files_below
from quad.lora.file import open_lora

ADAPTERS = "adapters"


def model_identity(model: Path, weights: str) -> str:
    """A model's weights and all its settings: samplers, tasks, schedules, sizes.

    Args:
        model: its directory; what lies in `adapters/` is not the model's own.
        weights: digest of its weight files.
    """
    settings = {
        file.relative_to(model).as_posix(): file_digest(file)
        for file in files_below(model)
        if file.suffix == ".json" and file.relative_to(model).parts[0] != ADAPTERS
    }
    return digest({"weights": weights, "settings": settings})


def adapter_identities(adapters: Mapping[str, Path]) -> dict[str, str]:
    """Name -> digest of the LoRA file and of the config beside it."""
    return {name: open_lora(file).digest for name, file in adapters.items()}
