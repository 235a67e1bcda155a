"""MODEL as a user writes it: a directory, a one-file checkpoint, or a hub id, which is fetched into huggingface's own cache.

Only what is read is fetched: configs, the tokenizer's files, and safetensors. Where a component comes in half precision too, that is taken:
half the download, and its rounding (2^-11) is far below the 8 bits that weights get. A cached copy that is whole is used without asking.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from quad.core.errors import InputError, QuadError, mismatch
from quad.core.families import FAMILIES
from quad.model.base.family import check_family, family_in
from quad.model.base.load_component import DIFFUSION_STEM, TRANSFORMERS_STEM

_EXPECTED = "a diffusers directory, a checkpoint (.safetensors) or a hub id"
_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?")
_VAE = "vae"
_FOLDERS = (*dict.fromkeys(folder for family in FAMILIES for folder in family.folders), _VAE, "scheduler", "")
_TEXTS = (".json", ".txt")
_SHARD = re.compile(r"-\d+-of-(\d+)")
# The first that a component has.
_VARIANTS = (".fp16", "")


def resolve_model(text: str) -> Path:
    """The directory or checkpoint of a model; one that exists goes first, then the cache, then the hub.

    Args:
        text: a path, `owner/name`, or `owner/name@revision` (branch, tag or commit).

    Raises:
        InputError: neither a directory nor a model on the hub, or it cannot be reached. UnsupportedError: a model of another family.
    """
    path, hub_id = Path(text), _ID.fullmatch(text)
    try:
        is_directory, is_file = bool(text) and path.is_dir(), path.is_file()
    except OSError as error:  # a name that the system does not take
        raise InputError(mismatch(text, _EXPECTED, f"{error.strerror}", "check the path")) from error
    if is_directory or is_file:
        return path
    if hub_id is None or ".." in text:  # no branch has that in its name, and a path in the cache could
        actual, remedy = ("an address", "give the hub id alone, owner/name") if "://" in text else ("none", "check the path")
        raise InputError(mismatch(text, _EXPECTED, actual, remedy))
    repo, revision = hub_id["repo"], hub_id["revision"]
    try:
        return _cached(repo, revision) or _fetched(repo, revision)
    except QuadError:
        raise
    except Exception as error:  # of the hub, of the library that asks it, or of the disk
        raise InputError(mismatch(text, "a directory, or a model on the hub", *cause_and_remedy(error))) from error


def files_to_read(repo: str, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Of a repository's files, the texts and the weights that are read.

    Raises:
        InputError: a component has no safetensors.
    """
    texts = [name for name in names if name.endswith(_TEXTS) and _folder(name) in _FOLDERS]
    return texts, [name for folder, stem in _stems(names).items() for name in _weights(repo, folder, stem, names)]


def _folder(name: str) -> str:
    return "" if "/" not in name else str(PurePosixPath(name).parent)


def _stems(names: Iterable[str]) -> dict[str, str]:
    """Component -> name of its weight file."""
    family = family_in({_folder(name) for name in names})
    return {family.denoiser.folder: DIFFUSION_STEM, _VAE: DIFFUSION_STEM, **{text.folder: TRANSFORMERS_STEM for text in family.texts}}


def _weights(repo: str, folder: str, stem: str, names: Sequence[str]) -> list[str]:
    """The safetensors of one component: one file, or its shards."""
    for variant in _VARIANTS:
        # Shards are named STEM.fp16-00001-of-00002 by diffusers, and STEM-00001-of-00002.fp16 in older files.
        pattern = re.compile(rf"{folder}/{stem}(-\d+-of-\d+)?{re.escape(variant)}(-\d+-of-\d+)?\.safetensors")
        if files := [name for name in names if pattern.fullmatch(name)]:
            return files
    other = next((name for name in names if _folder(name) == folder and not name.endswith(_TEXTS)), "no weights")
    raise InputError(mismatch(f"{repo}/{folder}", f"{stem}.safetensors", other, "choose a model in safetensors"))


def _cached(repo: str, revision: str | None) -> Path | None:
    """The cached copy, where it is whole."""
    try:
        path = Path(snapshot_download(repo, revision=revision, local_files_only=True, allow_patterns=["*"]))
        names = [file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()]
        return path if _is_whole(repo, names) else None
    except (OSError, ValueError):  # the hub's LocalEntryNotFoundError is both
        return None


def _is_whole(repo: str, names: Iterable[str]) -> bool:
    files = set(names)
    try:
        _, weights = files_to_read(repo, sorted(files))
    except InputError:
        return False
    shards = Counter((_SHARD.sub("", name), int(shard[1])) for name in weights if (shard := _SHARD.search(name)))
    if any(number != total for (_, total), number in shards.items()):
        return False
    configs = {f"{folder}/config.json" for folder in _stems(names)} | {"scheduler/scheduler_config.json"}
    return configs <= files and any(name.startswith("tokenizer/") for name in files)


def _fetched(repo: str, revision: str | None) -> Path:
    """The hub's copy; texts first, so that another family is refused before gigabytes are on their way."""
    texts, weights = files_to_read(repo, HfApi().list_repo_files(repo, revision=revision))
    check_family(Path(snapshot_download(repo, revision=revision, allow_patterns=texts)))
    return Path(snapshot_download(repo, revision=revision, allow_patterns=[*texts, *weights]))


def cause_and_remedy(error: Exception) -> tuple[str, str]:
    """The end of the message for an error of the hub: what was found, and what to do."""
    match error:
        case GatedRepoError():
            return "one whose licence has to be accepted first", "accept it on its page and log in: hf auth login"
        case RepositoryNotFoundError():
            return "none of that name", "check the name, or log in where it is private: hf auth login"
        case RevisionNotFoundError():
            return "no such revision", "check what follows the @"
        case OfflineModeIsEnabled() | LocalEntryNotFoundError():
            return "neither, and the hub is not to be reached", "go online once, or give a local path"
        case _:
            line = f"{error}".strip().splitlines()[0][:200] if f"{error}".strip() else type(error).__name__
            return f"no answer ({line})", "try again, or give a local path"
