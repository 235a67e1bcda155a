"""An adapter that is named by its hub id: its files are fetched into huggingface's own cache, or taken from there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi, snapshot_download

from quad.core.errors import InputError, QuadError, mismatch
from quad.core.storage.pickles import PICKLE_REASON, is_pickled
from quad.lora.locate import DIFFUSERS_NAME, MODEL_DIRECTORIES, PEFT_CONFIG, PEFT_NAME
from quad.lora.quote import listed
from quad.model.base.hub import cause_and_remedy

_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(/(?P<inside>[\w. /-]+?))?(@(?P<revision>[\w./-]+))?", re.ASCII)
_SUFFIX = ".safetensors"


def resolve_adapter(path: Path) -> Path:
    """The local place of an adapter; one that exists goes first, then the cache, then the hub.

    Args:
        path: a path, or `owner/name`, with a folder or file of the repository behind it where that is needed, and `@revision`.

    Returns:
        The path itself where it is no hub id: whoever opens it says what is wrong.

    Raises:
        InputError: no such adapter on the hub, or it cannot be reached.
    """
    text = path.as_posix()
    hub_id = _ID.fullmatch(text)
    if hub_id is None or ".." in text or _is_local(path, hub_id["inside"]):
        return path
    repo, inside, revision = hub_id["repo"], hub_id["inside"] or "", hub_id["revision"]
    try:
        return _cached(repo, inside, revision) or _fetched(repo, inside, revision)
    except QuadError:
        raise
    except Exception as error:  # of the hub, of the library that asks it, or of the disk
        raise InputError(mismatch(text, "a LoRA file, or one on the hub", *cause_and_remedy(error))) from error


def _is_local(path: Path, inside: str | None) -> bool:
    """Whether a path can only be meant for this machine: its first directory is there, or it names a file in one."""
    try:
        return path.exists() or Path(path.parts[0]).is_dir() or (inside is None and (path.suffix == _SUFFIX or is_pickled(path)))
    except OSError:
        return True


def adapter_files(repo: str, names: Sequence[str], inside: str = "") -> tuple[str, list[str]]:
    """Of a repository's files, the place of its adapter, and the files that belong to it.

    Args:
        names: of all files.
        inside: a folder or a file of the repository; "" for its top.

    Raises:
        InputError: none, only pickled ones, or several.
    """
    if inside in names:
        config = PurePosixPath(inside).with_name(PEFT_CONFIG).as_posix()
        return inside, [inside, *([config] if config in names else [])]
    below = {name.removeprefix(f"{inside}/") if inside else name: name for name in names if name.startswith(f"{inside}/") or not inside}
    folders = ("", *(f"{folder}/" for folder, _ in MODEL_DIRECTORIES))
    saved = [f"{folder}{name}" for folder in folders for name in (DIFFUSERS_NAME, PEFT_NAME) if f"{folder}{name}" in below]
    if saved:
        configs = [f"{folder}{PEFT_CONFIG}" for folder in folders if f"{folder}{PEFT_CONFIG}" in below]
        return inside, [below[name] for name in (*saved, *configs)]
    weights = [name for name in below if name.endswith(_SUFFIX) and "/" not in name]
    if len(weights) == 1:
        return below[weights[0]], [below[weights[0]]]
    where = f"{repo}/{inside}" if inside else repo
    if weights:
        remedy = f"name one of them: {where}/{weights[0]}"
        raise InputError(mismatch(where, "one LoRA", f"{len(weights)} files: {listed(weights)}", remedy))
    pickled = next((name for name in below if is_pickled(Path(name))), None)
    contents, remedy = ("none", "check the name") if pickled is None else (f"{pickled}: {PICKLE_REASON}", "convert it to safetensors")
    raise InputError(mismatch(where, "a LoRA in safetensors", contents, remedy))


def _cached(repo: str, inside: str, revision: str | None) -> Path | None:
    """The cached copy, where there is one."""
    try:
        root = Path(snapshot_download(repo, revision=revision, local_files_only=True, allow_patterns=["*"]))
        place, _ = adapter_files(repo, sorted(file.relative_to(root).as_posix() for file in root.rglob("*") if file.is_file()), inside)
    except (OSError, ValueError, InputError):  # the hub's LocalEntryNotFoundError is the first two
        return None
    return root / place


def _fetched(repo: str, inside: str, revision: str | None) -> Path:
    place, files = adapter_files(repo, HfApi().list_repo_files(repo, revision=revision), inside)
    return Path(snapshot_download(repo, revision=revision, allow_patterns=files)) / place
