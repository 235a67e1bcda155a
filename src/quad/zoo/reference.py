"""Where the shipped reference model lies: a diffusers directory with its five adapters, data of this package."""

from __future__ import annotations

from pathlib import Path

from quad.core.errors import InputError, mismatch
from quad.core.storage.reading import entry_names, is_file

NAME = "toyland"
ADAPTER_FILE = "pytorch_lora_weights.safetensors"


def reference_dir() -> Path:
    """The reference model's diffusers directory.

    Raises:
        InputError: this installation came without the weights (wheels do).
    """
    directory = Path(__file__).parent / "weights" / NAME
    if not (directory / "model_index.json").is_file():
        remedy = "install quad from a checkout (pip install -e .[build]), wheels leave them out"
        raise InputError(mismatch(str(directory), "the reference weights", "none", remedy))
    return directory


def reference_adapters() -> dict[str, Path]:
    """Adapter name -> LoRA file, sorted by name, as shipped with the reference model."""
    folder = reference_dir() / "adapters"
    return {name: file for name in entry_names(folder) if is_file(file := folder / name / ADAPTER_FILE)}
