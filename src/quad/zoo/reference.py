"""Where the shipped reference model lies, a diffusers directory with its five adapters, and later ones beside it: data of this package."""

from __future__ import annotations

from pathlib import Path

from quad.core.errors import InputError, UsageError, mismatch
from quad.core.storage.reading import entry_names, is_file

NAME = "toyland"
PREFIX = f"{NAME}:"  # before the name of a shipped adapter, where a path is asked for
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
    return _files_below(reference_dir() / "adapters")


def later_adapters() -> dict[str, Path]:
    """Adapter name -> LoRA file of those that lie beside the model: none of its tasks needs them, and no build takes them by itself."""
    return _files_below(reference_dir().parent)


def shipped_adapter(name: str) -> Path:
    """The LoRA file of a shipped adapter, of the model or beside it.

    Raises:
        UsageError: none has that name. InputError: this installation came without the weights.
    """
    files = reference_adapters() | later_adapters()
    if name not in files:
        raise UsageError(mismatch("--adapter", f"{PREFIX}NAME with one of {', '.join(files)}", f"{PREFIX}{name}", "choose one of these"))
    return files[name]


def _files_below(folder: Path) -> dict[str, Path]:
    return {name: file for name in entry_names(folder) if is_file(file := folder / name / ADAPTER_FILE)}
