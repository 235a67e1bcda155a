"""The signed state of a repository on disk: the four roles as last published, checked before anything is signed on top of them.

Publishing is atomic. Files of new names come first (`N.targets.json`, `N.snapshot.json`), then `timestamp.json` takes the old one's place
in one rename: until then every reader sees the old state whole. A new root comes after metadata that old and new keys have both signed, so
that the repository is whole before it and after it.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Root, Signed, Snapshot, Targets, Timestamp
from tuf.ngclient import UpdaterConfig

from quad.core.errors import InputError, VerificationError, mismatch
from quad.core.storage.files import once_done, sync_directory, write_bytes
from quad.core.storage.reading import entry_names, is_file, reading_from

_LOG = logging.getLogger(__name__)

T = TypeVar("T", bound=Signed)

METADATA, TARGETS = "metadata", "targets"
ONLINE = (Targets.type, Snapshot.type, Timestamp.type)
ROLES = (Root.type, *ONLINE)
ROOT_KEYS, ROOT_THRESHOLD = 3, 2
LARGEST_LIST = UpdaterConfig().targets_max_length
LIFE_DAYS = {Root.type: 365, Targets.type: 180, Snapshot.type: 30, Timestamp.type: 7}

Signers = Mapping[str, Sequence[CryptoSigner]]


def now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def expiry(role: str, at: datetime) -> datetime:
    """When metadata of a role that is signed at a moment expires."""
    return at + timedelta(days=LIFE_DAYS[role])


@dataclass(frozen=True, kw_only=True)
class State:
    """The four roles as last published.

    Args:
        files: bytes of the three that are not the root, by role.
    """

    root: Root
    targets: Targets
    snapshot: Snapshot
    timestamp: Timestamp
    files: Mapping[str, bytes]

    def payload(self, role: str) -> Signed:
        """One of them, by name."""
        payloads: dict[str, Signed] = {p.type: p for p in (self.root, self.targets, self.snapshot, self.timestamp)}
        return payloads[role]


def read_state(repository: Path) -> State:
    """The newest root, and what `timestamp.json` leads to; every signature and digest is checked.

    Raises:
        InputError: there is no repository. VerificationError: a file was changed. BackendError: one cannot be read.
    """
    return load_state(newest_root(repository), lambda name: read_file(repository, name), str(repository / METADATA))


def newest_root(repository: Path) -> Root:
    """The root of the highest number.

    Raises:
        InputError, VerificationError, BackendError: as `read_state`.
    """
    numbers = file_numbers(repository, Root.type)
    if not numbers:
        raise InputError(mismatch(str(repository), "a repository", "none", "make one with quad publish init"))
    name = f"{max(numbers)}.root.json"
    return verified(f"{repository / METADATA / name}", read_file(repository, name), Root, None)


def file_numbers(repository: Path, role: str) -> list[int]:
    """Numbers of a role's files, rising.

    Raises:
        BackendError: the directory cannot be listed.
    """
    matches = (re.fullmatch(rf"([1-9]\d*)\.{role}\.json", name) for name in entry_names(repository / METADATA))
    return sorted(int(match[1]) for match in matches if match)


def read_file(repository: Path, name: str) -> bytes | None:
    """A file of metadata; None where there is none.

    Raises:
        BackendError: it cannot be read.
    """
    path = repository / METADATA / name
    if not is_file(path):
        return None
    with reading_from(path):
        return path.read_bytes()


def load_state(root: Root, read: Callable[[str], bytes | None], where: str) -> State:
    """The state that `timestamp.json` leads to, under a root.

    Args:
        read: a file of metadata by its name.
        where: its directory, for messages.

    Raises:
        VerificationError: a file is missing, or is not what signs it or names it says.
    """
    names = {Timestamp.type: "timestamp.json"}
    files = {Timestamp.type: read(names[Timestamp.type])}
    timestamp = verified(f"{where}/timestamp.json", files[Timestamp.type], Timestamp, root)
    snapshot_file = f"{timestamp.snapshot_meta.version}.snapshot.json"
    files[Snapshot.type] = read(snapshot_file)
    snapshot = verified(f"{where}/{snapshot_file}", files[Snapshot.type], Snapshot, root, timestamp.snapshot_meta)
    targets_meta = snapshot.meta["targets.json"]
    targets_file = f"{targets_meta.version}.targets.json"
    files[Targets.type] = read(targets_file)
    targets = verified(f"{where}/{targets_file}", files[Targets.type], Targets, root, targets_meta)
    whole = {role: data for role, data in files.items() if data is not None}
    return State(root=root, targets=targets, snapshot=snapshot, timestamp=timestamp, files=whole)


def verified(where: str, data: bytes | None, kind: type[T], root: Root | None, named: MetaFile | None = None) -> T:
    """The signed part of a file of metadata.

    Args:
        data: None where it is missing.
        root: whose keys must have signed it; None for a root, which signs itself.
        named: the number and digest that another file gives it.

    Raises:
        VerificationError: it is another one.
    """
    try:
        if data is None:
            raise RepositoryError("no file")
        metadata: Metadata[Any] = Metadata.from_bytes(data)
        trusted = root if root is not None else metadata.signed
        if not isinstance(metadata.signed, kind) or not isinstance(trusted, Root):
            raise RepositoryError(f"it is a {metadata.signed.type}")
        trusted.verify_delegate(kind.type, metadata.signed_bytes, metadata.signatures)
        if named is not None:
            named.verify_length_and_hashes(data)
            if metadata.signed.version != named.version:
                raise RepositoryError(f"its number is {metadata.signed.version}")
    except RepositoryError as error:
        next_step = "it was lost, or changed outside of quad: quad publish repair, or a copy of what is served, restores it"
        raise VerificationError(mismatch(where, f"signed {kind.type} metadata", f"something else ({error})", next_step)) from error
    return metadata.signed


def signed_bytes(payload: Signed, signers: Sequence[CryptoSigner]) -> bytes:
    """Metadata with the signatures of all signers."""
    metadata: Metadata[Any] = Metadata(payload)
    for signer in signers:
        metadata.sign(signer, append=True)
    return metadata.to_bytes()


def write_root(repository: Path, root: Root, signers: Sequence[CryptoSigner]) -> None:
    """Publish a root; from this moment on it is the newest."""
    put(repository, f"{root.version}.root.json", signed_bytes(root, signers))


def publish(repository: Path, state: State, changed: Collection[str], signers: Signers) -> State:
    """Write the next version of roles, and what depends on them, with new expiry; each names the digest of the file that it lists.

    Args:
        changed: of `targets`, `snapshot`, `timestamp`; a change of one brings those after it.
        signers: of every role that is written.

    Raises:
        InputError: the list of packs is longer than a device reads.
    """
    at, files = now(), dict(state.files)
    if Targets.type in changed:
        _next(state.targets, at)
        files[Targets.type] = signed_bytes(state.targets, signers[Targets.type])
        if len(files[Targets.type]) > LARGEST_LIST:
            next_step = "nothing was published; revoke packs that nobody needs, or begin another repository"
            raise InputError(
                mismatch("targets.json", f"at most {LARGEST_LIST} bytes, devices read no more", len(files[Targets.type]), next_step)
            )
        put(repository, f"{state.targets.version}.targets.json", files[Targets.type])
    if Targets.type in changed or Snapshot.type in changed:
        _next(state.snapshot, at)
        state.snapshot.meta["targets.json"] = _named(state.targets, files)
        files[Snapshot.type] = signed_bytes(state.snapshot, signers[Snapshot.type])
        put(repository, f"{state.snapshot.version}.snapshot.json", files[Snapshot.type])
    _next(state.timestamp, at)
    state.timestamp.snapshot_meta = _named(state.snapshot, files)
    files[Timestamp.type] = signed_bytes(state.timestamp, signers[Timestamp.type])
    put(repository, "timestamp.json", files[Timestamp.type])
    return replace(state, files=files)


def _named(payload: Signed, files: Mapping[str, bytes]) -> MetaFile:
    data = files[payload.type]
    return MetaFile(payload.version, len(data), {"sha256": hashlib.sha256(data).hexdigest()})


def _next(payload: Signed, at: datetime) -> None:
    payload.version += 1
    payload.expires = expiry(payload.type, at)


def put(repository: Path, name: str, data: bytes) -> None:
    """Write a file of metadata.

    Raises:
        BackendError: the disk is full or the place cannot be written to.
    """
    path = repository / METADATA / name
    write_bytes(path, data)
    _LOG.info("published %s, %d bytes", name, len(data))
    with once_done(f"{path} is published"):
        sync_directory(path.parent)


def empty_state(root: Root) -> State:
    """Empty roles at version 0, which `publish` makes 1."""
    at = now()
    state = State(root=root, targets=Targets(expires=at), snapshot=Snapshot(expires=at), timestamp=Timestamp(expires=at), files={})
    for payload in (state.targets, state.snapshot, state.timestamp):
        payload.version = 0
    return state
