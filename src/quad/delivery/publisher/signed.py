"""The signed state of a repository on disk: the four roles as last published, checked before anything is signed on top of them.

Publishing is atomic. Files of new names come first (`N.targets.json`, `N.snapshot.json`), then `timestamp.json` takes the old one's place
in one rename: until then every reader sees the old state whole. A new root comes after metadata that old and new keys have both signed, so
that the repository is whole before it and after it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import RepositoryError, StorageError
from tuf.api.metadata import Metadata, MetaFile, Root, Signed, Snapshot, Targets, Timestamp
from tuf.ngclient import UpdaterConfig

from quad.core.errors import InputError, VerificationError, mismatch
from quad.core.storage.files import sync_directory, write_bytes
from quad.delivery.publisher.keys import Keys

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
    """The four roles as last published."""

    root: Root
    targets: Targets
    snapshot: Snapshot
    timestamp: Timestamp


def read_state(repository: Path) -> State:
    """The newest root, and what `timestamp.json` leads to; every signature is checked.

    Raises:
        InputError: there is no repository. VerificationError: a file was changed.
    """
    folder = repository / METADATA
    roots = [int(number[1]) for path in folder.glob("*.root.json") if (number := re.fullmatch(r"(\d+)\.root\.json", path.name))]
    if not roots:
        raise InputError(mismatch(str(repository), "a repository", "none", "make one with quad publish init"))
    root = _read(folder / f"{max(roots)}.root.json", Root, None)
    timestamp = _read(folder / "timestamp.json", Timestamp, root)
    snapshot = _read(folder / f"{timestamp.snapshot_meta.version}.snapshot.json", Snapshot, root)
    targets = _read(folder / f"{snapshot.meta['targets.json'].version}.targets.json", Targets, root)
    return State(root=root, targets=targets, snapshot=snapshot, timestamp=timestamp)


def _read(path: Path, kind: type[T], root: Root | None) -> T:
    try:
        metadata: Metadata[Any] = Metadata.from_file(str(path))
        trusted = root if root is not None else metadata.signed
        if not isinstance(metadata.signed, kind) or not isinstance(trusted, Root):
            raise RepositoryError(f"it is a {metadata.signed.type}")
        trusted.verify_delegate(kind.type, metadata.signed_bytes, metadata.signatures)
    except (RepositoryError, StorageError) as error:
        next_step = "it was changed outside of quad, restore the repository"
        raise VerificationError(mismatch(str(path), f"signed {kind.type} metadata", f"something else ({error})", next_step)) from error
    return metadata.signed


def signed_bytes(payload: Signed, signers: Sequence[CryptoSigner]) -> bytes:
    """Metadata with the signatures of all signers."""
    metadata: Metadata[Any] = Metadata(payload)
    for signer in signers:
        metadata.sign(signer, append=True)
    return metadata.to_bytes()


def write_root(repository: Path, root: Root, signers: Sequence[CryptoSigner]) -> None:
    """Publish a root; from this moment on it is the newest."""
    _put(repository, f"{root.version}.root.json", signed_bytes(root, signers))


def publish(repository: Path, state: State, changed: Sequence[str], signers: Signers) -> State:
    """Write the next version of roles, and what depends on them, with new expiry.

    Args:
        changed: of `targets`, `snapshot`, `timestamp`; a change of one brings those after it.
        signers: of every role that is written.

    Raises:
        InputError: the list of packs is longer than a device reads.
    """
    at = now()
    if Targets.type in changed:
        _next(state.targets, at)
        state.snapshot.meta["targets.json"] = MetaFile(state.targets.version)
        data = signed_bytes(state.targets, signers[Targets.type])
        if len(data) > LARGEST_LIST:
            next_step = "nothing was published; revoke packs that nobody needs, or begin another repository"
            raise InputError(mismatch("targets.json", f"at most {LARGEST_LIST} bytes, devices read no more", len(data), next_step))
        _put(repository, f"{state.targets.version}.targets.json", data)
    if Targets.type in changed or Snapshot.type in changed:
        _next(state.snapshot, at)
        state.timestamp.snapshot_meta = MetaFile(state.snapshot.version)
        _put(repository, f"{state.snapshot.version}.snapshot.json", signed_bytes(state.snapshot, signers[Snapshot.type]))
    _next(state.timestamp, at)
    _put(repository, "timestamp.json", signed_bytes(state.timestamp, signers[Timestamp.type]))
    return state


def _next(payload: Signed, at: datetime) -> None:
    payload.version += 1
    payload.expires = expiry(payload.type, at)


def _put(repository: Path, name: str, data: bytes) -> None:
    path = repository / METADATA / name
    write_bytes(path, data)
    _LOG.info("published %s, %d bytes", name, len(data))
    sync_directory(path.parent)


def new_state(keys: Keys) -> tuple[State, dict[str, list[CryptoSigner]]]:
    """A root over new keys and empty roles at version 0, which `publish` makes 1; and all of the signers."""
    at = now()
    root = Root(expires=expiry(Root.type, at), consistent_snapshot=True)
    signers = {role: [keys.make(role) for _ in range(ROOT_KEYS if role == Root.type else 1)] for role in ROLES}
    for role, role_signers in signers.items():
        for signer in role_signers:
            root.add_key(signer.public_key, role)
    root.roles[Root.type].threshold = ROOT_THRESHOLD
    state = State(root=root, targets=Targets(expires=at), snapshot=Snapshot(expires=at), timestamp=Timestamp(expires=at))
    for payload in (state.targets, state.snapshot, state.timestamp):
        payload.version = 0
    return state, signers
