"""The weight files of a diffusers directory: found, opened and refused by name before any library reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from quad.core.digests import digest, file_digest
from quad.core.errors import InputError, mismatch
from quad.model.lora_file import PICKLE_REASON, PICKLED_SUFFIXES


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object from `path`.

    Raises:
        InputError: missing, or no JSON object.
    """
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise InputError(mismatch(f"{path}", "a file of a diffusers model", "no such file", "name the model's own directory")) from error
    except (OSError, ValueError) as error:
        raise InputError(mismatch(f"{path}", "JSON", f"{error}", "fetch or save the model again")) from error
    if not isinstance(found, dict):
        raise InputError(mismatch(f"{path}", "a JSON object", type(found).__name__, "fetch or save the model again"))
    return found


def _open_header(path: Path) -> None:
    try:
        with safe_open(path, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        found = f"{error}".splitlines()[0]
        raise InputError(mismatch(f"{path}", "a whole safetensors file", found, "fetch or save the model again")) from error


def find_weights(folder: Path, stem: str) -> tuple[str | None, list[Path]]:
    """The safetensors files of one component, every one of them whole, and their variant.

    Args:
        stem: `diffusion_pytorch_model` for diffusers' modules, `model` for transformers'.

    Returns:
        the variant to ask the library for (None or `fp16`), and the files (several where the component is sharded).

    Raises:
        InputError: no weights, only pickled ones, a shard missing, or a truncated file.
    """
    for variant in (None, "fp16"):
        middle = f".{variant}" if variant else ""
        index = folder / f"{stem}.safetensors.index{middle}.json"
        files = [folder / f"{stem}{middle}.safetensors"]
        if index.is_file():
            files = [folder / name for name in sorted(set(read_config(index).get("weight_map", {}).values()))]
        if index.is_file() or files[0].is_file():
            for file in files:
                _open_header(file)
            return variant, files
    wanted = f"{stem}.safetensors"
    for file in sorted(folder.iterdir()) if folder.is_dir() else []:
        if file.suffix in PICKLED_SUFFIXES:
            raise InputError(mismatch(f"{file}", wanted, PICKLE_REASON, "save the model with safe_serialization=True"))
    raise InputError(mismatch(f"{folder}", wanted, "no weights", "fetch the model whole"))


def weights_digest(root: Path, files: list[Path]) -> str:
    """The identity of a base: SHA-256 over its weight files' names and digests."""
    return digest({file.relative_to(root).as_posix(): file_digest(file) for file in files})
