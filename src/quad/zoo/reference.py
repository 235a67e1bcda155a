"""Where the shipped reference models lie, diffusers directories with their adapters, and later ones beside them: data of this package."""

from __future__ import annotations

from pathlib import Path

from quad.core.errors import InputError, UsageError, mismatch
from quad.core.storage.reading import entry_names, is_file

NAME = "toyland"
MODELS = (NAME, f"{NAME}-xl")
ADAPTER_FILE = "pytorch_lora_weights.safetensors"


def reference_dir(model: str = NAME) -> Path:
    """A reference model's diffusers directory.

    Args:
        model: one of `MODELS`.

    Raises:
        InputError: this installation came without the weights (wheels do).
    """
    directory = Path(__file__).parent / "weights" / model
    if not (directory / "model_index.json").is_file():
        remedy = "install quad from a checkout (pip install -e .[build]), wheels leave them out"
        raise InputError(mismatch(str(directory), "the reference weights", "none", remedy))
    return directory


def reference_adapters(model: str = NAME) -> dict[str, Path]:
    """Adapter name -> LoRA file, sorted by name, as shipped with a reference model."""
    return _files_below(reference_dir(model) / "adapters")


def later_adapters() -> dict[str, Path]:
    """Adapter name -> LoRA file of those that lie beside `toyland`: none of its tasks needs them, and no build takes them by itself."""
    return _files_below(reference_dir().parent)


def shipped_adapter(name: str, model: str = NAME) -> Path:
    """The LoRA file of a shipped adapter, of a model or beside it.

    Raises:
        UsageError: none has that name. InputError: this installation came without the weights.
    """
    files = reference_adapters(model) | (later_adapters() if model == NAME else {})
    if name not in files:
        expected = f"{model}:NAME with one of {', '.join(files)}"
        raise UsageError(mismatch("--adapter", expected, f"{model}:{name}", "choose one of these"))
    return files[name]


def _files_below(folder: Path) -> dict[str, Path]:
    return {name: file for name in entry_names(folder) if is_file(file := folder / name / ADAPTER_FILE)}
