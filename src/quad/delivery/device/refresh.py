"""One refresh: from what a device trusts to what a source has now, as far as it can be believed.

tuf's updater works in a directory of its own for each refresh; what it has verified there is kept, also when the refresh fails later: a new
root that was seen once cannot be hidden again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
from tuf.api.exceptions import DownloadError, LengthOrHashMismatchError, RepositoryError
from tuf.api.metadata import Metadata, Targets
from tuf.ngclient import Updater

from quad.core.errors import QuadError, VerificationError
from quad.core.storage.reading import entry_names, is_file
from quad.delivery.device.attack_messages import attack_error, download_error, metadata_error
from quad.delivery.device.download import MetadataFetcher
from quad.delivery.device.trust import Trust, payload
from quad.delivery.offer import FARTHEST, revocations
from quad.delivery.source import Source

_LOG = logging.getLogger(__name__)

_ROLES = ("timestamp", "snapshot", "targets")


def refresh(trust: Trust, source: Source, scratch: Path, keep: Callable[[Trust], None]) -> Trust:
    """Bring trust up to what the source has now.

    Args:
        scratch: an empty directory for tuf's files.
        keep: called with what was verified, before anything is raised; not where that is nothing new.

    Raises:
        VerificationError: an attack, see `quad.delivery.device.attack_messages`. BackendError: the source is not to be reached.
    """
    # 1. tuf goes on from what is trusted: its client workflow, in a directory of its own.
    for role, text in trust.roles.items():
        (scratch / f"{role}.json").write_text(text, encoding="utf-8")
    failure = _update(trust, source, scratch)
    roles = _roles_in(scratch)
    # 2. tuf reads no snapshot again whose number it has. Where two publishers gave one number to two snapshots, it has to.
    if not _is_named_snapshot(roles):
        (scratch / "snapshot.json").unlink()
        failure = _update(trust, source, scratch)
        roles |= _roles_in(scratch)
    # 3. What was verified counts even where it failed later, a new root above all: it cannot be hidden again.
    root = _newest_root(scratch) or trust.root
    verified = msgspec.structs.replace(trust, root=root, roles=roles)
    if failure is None:
        verified = msgspec.structs.replace(verified, url=source.name, redirects=source.redirects)
    # 4. Checks that the specification leaves to its user: how far versions may go at once, what a list may lack, that targets are packs.
    leap = _fast_forward(trust, verified, source.name)
    undone = None if leap or failure else _undone(trust, verified, source.name)
    malformed = None if leap or failure or undone else _malformed(verified)
    # 5. As much of it is trusted from now on as those allow, and that is written before anything is raised.
    trusted = verified
    if leap is not None or undone is not None:
        trusted = msgspec.structs.replace(trust, root=verified.root)
    elif malformed is not None:  # the list of packs of before is still good for what is installed
        trusted = msgspec.structs.replace(verified, roles={**verified.roles, "targets": trust.roles.get("targets", "")})
    _log_versions(trust, verified)
    if trusted != trust:  # a root that was given by mistake, and that nothing was verified with, is forgotten
        keep(trusted)
    wrong = leap or failure or undone or malformed
    if wrong is not None:
        _LOG.warning("refresh failed: %s", type(wrong).__name__)
        raise wrong
    _LOG.info("refreshed to root %d, targets %d", _version(verified.root), _version(verified.roles.get("targets")))
    return verified


def _update(trust: Trust, source: Source, scratch: Path) -> QuadError | None:
    """tuf's workflow once; its error as one line."""
    fetcher = MetadataFetcher(source)
    try:
        Updater(str(scratch), "metadata/", fetcher=fetcher, bootstrap=trust.root.encode()).refresh()
    except DownloadError as error:
        failure = download_error(error, f"{source.name}/{fetcher.path}")
        failure.__cause__ = error
        return failure
    except RepositoryError as error:
        root = payload(_newest_root(scratch) or trust.root)
        failure = metadata_error(error, f"{source.name}/{fetcher.path}", fetcher.data, root)
        failure.__cause__ = error
        return failure
    return None


def _is_named_snapshot(roles: Mapping[str, str]) -> bool:
    """Whether the snapshot is the one that the timestamp names, by its digest, where it names one of this number."""
    if "snapshot" not in roles or "timestamp" not in roles:
        return True
    named = payload(roles["timestamp"]).snapshot_meta
    if named.version == _version(roles["snapshot"]):
        try:
            named.verify_length_and_hashes(roles["snapshot"].encode())
        except LengthOrHashMismatchError:
            return False
    return True


def _version(text: str | None) -> int:
    return int(payload(text).version) if text else 0


def _log_versions(before: Trust, after: Trust) -> None:
    """Each role's step, as far as it was verified."""
    _LOG.debug("root: version %d, was %d", _version(after.root), _version(before.root))
    for role, text in after.roles.items():
        _LOG.debug("%s: version %d, was %d", role, _version(text), _version(before.roles.get(role)))


def _malformed(trust: Trust) -> QuadError | None:
    """The error in a list of packs that is well signed; None where it is one of packs."""
    try:
        trust.catalogue()
    except VerificationError as error:
        return error
    return None


def _newest_root(scratch: Path) -> str | None:
    history = scratch / "root_history"
    roots = {int(name.split(".")[0]): history / name for name in entry_names(history) if name.endswith(".root.json")}
    return roots[max(roots)].read_text(encoding="utf-8") if roots else None


def _roles_in(scratch: Path) -> dict[str, str]:
    files = {role: scratch / f"{role}.json" for role in _ROLES}
    return {role: path.read_text(encoding="utf-8") for role, path in files.items() if is_file(path)}


def _fast_forward(before: Trust, after: Trust, where: str) -> QuadError | None:
    """A fast-forward: whoever has a role's key for an hour would else end all later versions."""
    for role, text in after.roles.items():
        last, version = _version(before.roles.get(role)), _version(text)
        if version > last + FARTHEST:
            return attack_error(f"{where}/metadata/{role}.json", f"a version of at most {last + FARTHEST}", str(version), "fast-forward")
    return None


def _undone(before: Trust, after: Trust, where: str) -> QuadError | None:
    """A list of packs that is older than the one before, or lacks a revocation of it; lists that old keys have signed count no more."""
    last = _counting_list(before.roles.get("targets"), after)
    text = after.roles.get("targets")
    if last is None or not text or text == before.roles["targets"]:
        return None
    new, file = payload(text), f"{where}/metadata/targets.json"
    if new.version < last.version:
        return attack_error(file, f"a version of at least {last.version}", str(new.version), "rollback")
    with suppress(VerificationError):  # a list that is none is told of as that
        revoked = {entry.sha256 for entry in revocations(new)}
        for entry in revocations(last):
            if entry.sha256 not in revoked:
                return attack_error(file, f"{entry.name}:{entry.version} revoked, as before", "that it is not", "rollback")
    return None


def _counting_list(text: str | None, trust: Trust) -> Targets | None:
    """A list of packs, where the keys of today's root have signed it."""
    if not text:
        return None
    metadata: Metadata[Any] = Metadata.from_bytes(text.encode())
    try:
        payload(trust.root).verify_delegate(Targets.type, metadata.signed_bytes, metadata.signatures)
    except RepositoryError:
        return None
    return metadata.signed if isinstance(metadata.signed, Targets) else None
