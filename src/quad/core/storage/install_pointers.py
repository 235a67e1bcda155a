"""Adapters that came after the bundle: which pack each name stands for, so that a switch of versions is one rename.

    STORE/installed/NAME.json    the pointer: canonical JSON of `Installed`
    STORE/packs/SHA256.qpack     the packs, named by their own digest

A pointer always names a whole pack: the pack is on the disk before the pointer is, and goes only after no pointer names it.
"""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path
from typing import Annotated

import msgspec

from quad.core.digests import canonical_json
from quad.core.errors import VerificationError, mismatch
from quad.core.manifest import AdapterName
from quad.core.storage.files import once_done, sync_directory, write_bytes, writing_to
from quad.core.storage.pack import PACK_SUFFIX
from quad.core.storage.reading import entry_names, file_status, reading_from

_LOG = logging.getLogger(__name__)

POINTERS, PACKS = "installed", "packs"
STORE_SUFFIX, POINTER_SUFFIX = ".adapters", ".json"
_AGAIN = "install the adapter again"

Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]


class Version(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One version of an adapter: its number, and the digest and bytes of its pack file."""

    version: Annotated[int, msgspec.Meta(ge=1)]
    sha256: Sha256
    size_bytes: Annotated[int, msgspec.Meta(ge=0)]


class Installed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A pointer: the version that runs, and the one that a rollback returns to."""

    name: AdapterName
    current: Version
    previous: Version | None = None


def store_beside(bundle: Path) -> Path:
    """Where the adapters of a bundle go when nobody says where: `phone.adapters` beside `phone`."""
    place = Path(os.path.abspath(bundle))  # of every spelling of a place the same
    return place.with_name(f"{place.name}{STORE_SUFFIX}")


def pack_path(store_dir: Path, sha256: str) -> Path:
    """The file of a pack, by the digest of its bytes."""
    return store_dir / PACKS / f"{sha256}{PACK_SUFFIX}"


def pointer_path(store_dir: Path, name: str) -> Path:
    """The file of a pointer."""
    return store_dir / POINTERS / f"{name}{POINTER_SUFFIX}"


def read_pointers(store_dir: Path) -> dict[str, Installed]:
    """Every pointer by adapter name, sorted; none where there is no store.

    Raises:
        VerificationError: a pointer is damaged, or speaks of another adapter. BackendError: as `pointer_names`.
    """
    return {name: read_pointer(pointer_path(store_dir, name)) for name in pointer_names(store_dir)}


def read_installed(store_dir: Path) -> dict[str, Path]:
    """The pack that each installed adapter runs from, by name, sorted. Bytes are checked when a pack is loaded, by its own digests.

    Raises:
        VerificationError: a pointer is damaged, or its pack is not there whole. BackendError: as `inspect_installed`.
    """
    packs = inspect_installed(store_dir)
    for pack in packs.values():
        if isinstance(pack, VerificationError):
            raise pack
    return {name: pack for name, pack in packs.items() if isinstance(pack, Path)}


def inspect_installed(store_dir: Path) -> dict[str, Path | VerificationError]:
    """As `read_installed`, but what is damaged of one adapter is said of that one, and hides no other.

    Raises:
        BackendError: the system does not let a part of the store be read; nobody knows then what is installed.
    """
    return {name: _pack_of(store_dir, name) for name in pointer_names(store_dir)}


def is_whole(store_dir: Path, version: Version) -> bool:
    """Whether a version's pack lies there with all of its bytes.

    Raises:
        BackendError: the system does not say.
    """
    return _pack_bytes(pack_path(store_dir, version.sha256)) == version.size_bytes


def write_pointer(store_dir: Path, pointer: Installed) -> None:
    """Switch an adapter to another version: after this returns it is switched for good, before that the old one runs.

    Raises:
        BackendError: the disk is full or the place cannot be written to.
    """
    path = pointer_path(store_dir, pointer.name)
    write_bytes(path, canonical_json(pointer))
    _LOG.debug("adapter %s: points to version %d", pointer.name, pointer.current.version)
    with once_done(f"adapter {pointer.name}: version {pointer.current.version} runs now"):
        sync_directory(path.parent)
        sync_directory(store_dir)


def remove_pointer(store_dir: Path, name: str) -> None:
    """Uninstall an adapter; its packs are left to lie.

    Raises:
        BackendError: the place cannot be written to.
    """
    path = pointer_path(store_dir, name)
    with writing_to(path):
        path.unlink(missing_ok=True)
    _LOG.debug("adapter %s: points to nothing", name)
    with once_done(f"adapter {name}: uninstalled"):
        sync_directory(path.parent)


def read_pointer(path: Path) -> Installed:
    """One pointer.

    Raises:
        VerificationError: it is damaged, or speaks of another adapter. BackendError: the system does not let it be read, it may be sound.
    """
    with reading_from(path):
        data = path.read_bytes()
    try:
        pointer = msgspec.json.decode(data, type=Installed)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise VerificationError(mismatch(str(path), "a pointer to a pack", f"something else ({error})", _AGAIN)) from error
    if pointer.name != path.name.removesuffix(POINTER_SUFFIX):
        raise VerificationError(mismatch(str(path), "a pointer of that name", repr(pointer.name), _AGAIN))
    return pointer


def pointer_names(store_dir: Path) -> list[str]:
    """Names of the adapters that have a pointer, sorted; none where there is no store.

    Raises:
        BackendError: the pointers cannot be listed.
    """
    files = [name for name in entry_names(store_dir / POINTERS) if name.endswith(POINTER_SUFFIX) and not name.startswith(".")]
    return [name.removesuffix(POINTER_SUFFIX) for name in files]


def _pack_bytes(path: Path) -> int | None:
    """Bytes of a pack's file; None where there is no file."""
    status = file_status(path)
    return status.st_size if status is not None and stat.S_ISREG(status.st_mode) else None


def _pack_of(store_dir: Path, name: str) -> Path | VerificationError:
    try:
        return _whole(store_dir, read_pointer(pointer_path(store_dir, name)))
    except VerificationError as error:
        return error


def _whole(store_dir: Path, pointer: Installed) -> Path:
    path, expected = pack_path(store_dir, pointer.current.sha256), pointer.current.size_bytes
    if not is_whole(store_dir, pointer.current):
        n_bytes = _pack_bytes(path)
        actual = "no such file" if n_bytes is None else f"{n_bytes} bytes"
        raise VerificationError(mismatch(f"{path} of {pointer.name!r}", f"a pack of {expected} bytes", actual, _AGAIN))
    return path
