"""The weight files of a diffusers directory: found, opened and refused by name before any library reads them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from quad.core.digests import digest
from quad.core.errors import InputError, mismatch
from quad.core.storage.header import Header, Malformed
from quad.core.storage.pickles import PICKLE_REASON, is_pickled
from quad.core.storage.stable_file import StableFile

LARGEST_CONFIG = 64 * 2**20
INDEX_FILE = "model_index.json"


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object from `path`.

    Raises:
        InputError: missing, no plain file, or no JSON object.
    """
    try:
        if not path.is_file():
            raise InputError(mismatch(f"{path}", "a file of a diffusers model", "no such file", "name the model's own directory"))
        if path.stat().st_size > LARGEST_CONFIG:
            raise InputError(mismatch(f"{path}", "a config", f"more than {LARGEST_CONFIG >> 20} MiB", "fetch or save the model again"))
        config = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(mismatch(f"{path}", "JSON", f"{error}", "fetch or save the model again")) from error
    if not isinstance(config, dict):
        raise InputError(mismatch(f"{path}", "a JSON object", type(config).__name__, "fetch or save the model again"))
    return config


def read_index(directory: Path) -> dict[str, Any]:
    """A pipeline's `model_index.json`; empty where the directory has none.

    Raises:
        InputError: as `read_config`.
    """
    return read_config(directory / INDEX_FILE) if (directory / INDEX_FILE).is_file() else {}


def open_header(file: StableFile) -> Header:
    """The header of a weight file.

    Raises:
        InputError: it is no whole safetensors file, or was changed since it was found.
    """
    try:
        return file.header()
    except Malformed as error:
        raise _not_whole(file.path, f"{error}") from error


def _find(path: Path) -> StableFile:
    try:
        if path.is_file():
            file = StableFile.of(path)
            open_header(file)
            return file
    except OSError as error:
        raise _not_whole(path, f"{error}") from error
    raise _not_whole(path, "no such file")


def _not_whole(path: Path, cause: str) -> InputError:
    return InputError(mismatch(f"{path}", "a whole safetensors file", cause, "fetch or save the model again"))


def find_weights(folder: Path, stem: str) -> list[StableFile]:
    """The safetensors files of one component, every one of them whole; the `fp16` variant where there is no other.

    Args:
        stem: `diffusion_pytorch_model` for diffusers' modules, `model` for transformers'.

    Returns:
        the files, several where the component is sharded.

    Raises:
        InputError: no weights, only pickled ones, a shard missing, or a truncated file.
    """
    missing: list[Path] = []
    for variant in (None, "fp16"):
        middle = f".{variant}" if variant else ""
        index = folder / f"{stem}.safetensors.index{middle}.json"
        files = [folder / f"{stem}{middle}.safetensors"]
        if index.is_file():
            files = _shards(folder, index)
        if any(file.is_file() for file in files):
            return [_find(file) for file in files]
        # An index may lie beside another variant's weights, without its own.
        missing = missing or (files if index.is_file() else [])
    for file in missing:
        _find(file)
    expected = f"{stem}.safetensors"
    for file in sorted(folder.iterdir()) if folder.is_dir() else []:
        if is_pickled(file):
            raise InputError(mismatch(f"{file}", expected, PICKLE_REASON, "save the model with safe_serialization=True"))
        if file.match(f"{stem}*-of-*.safetensors"):
            raise InputError(mismatch(f"{folder}", f"{expected}.index.json", f"{file.name} without it", "fetch the model whole"))
    raise InputError(mismatch(f"{folder}", expected, "no weights", "fetch the model whole"))


def _shards(folder: Path, index: Path) -> list[Path]:
    listed = read_config(index).get("weight_map")
    names = sorted({str(name) for name in listed.values()}) if isinstance(listed, dict) else []
    if outside := [name for name in names if Path(name).name != name]:
        raise InputError(mismatch(f"{index}", "names of files beside it", repr(outside[0]), "fetch or save the model again"))
    if not names:
        raise InputError(mismatch(f"{index}", "a weight_map of files", "none", "fetch or save the model again"))
    return [folder / name for name in names]


def files_digest(root: Path, files: Iterable[StableFile]) -> str:
    """The identity of a base as bundles before 0.2 have it: SHA-256 over its weight files' names and digests."""
    names = {file: file.path.relative_to(root).as_posix() if file.path.is_relative_to(root) else file.path.name for file in files}
    return digest({name: file.sha256() for file, name in names.items()})
