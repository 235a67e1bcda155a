"""The metadata that a device trusts: one file, `STORE/trust.json`, written in one rename: a killed refresh has the old trust or the new.

tuf's updater works in a directory of its own for each refresh; what it has verified there is kept, also when the refresh fails later: a new
root that was seen once cannot be hidden again.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from tuf.api.exceptions import DownloadError, RepositoryError
from tuf.api.metadata import Metadata, Root, Targets
from tuf.ngclient import Updater

from quad.core.digests import canonical_json
from quad.core.errors import QuadError, UsageError, VerificationError, mismatch
from quad.core.storage.files import sync_directory, write_bytes
from quad.delivery.device.attack_messages import attack_error, download_error, metadata_error
from quad.delivery.device.download import MetadataFetcher
from quad.delivery.device.source import Source
from quad.delivery.offer import Catalogue, read_catalogue

_LOG = logging.getLogger(__name__)

TRUST_FILE = "trust.json"
FARTHEST = 1_000_000  # versions that a role may be ahead of its last one: an hourly timestamp makes as many in a century
_ROLES = ("timestamp", "snapshot", "targets")


class Trust(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The texts of the metadata that was verified last.

    Args:
        anchor: digest of the root that was given at first.
        url: where the repository was read last.
        root: the newest root.
        roles: the others by name.
    """

    anchor: str
    root: str
    url: str = ""
    roles: dict[str, str] = {}

    def catalogue(self) -> Catalogue:
        """The packs on offer and revoked when the repository was read last; none before that.

        Raises:
            VerificationError: it is no list of packs.
        """
        if not self.roles.get("targets"):
            return Catalogue({}, ())
        targets = _payload(self.roles["targets"])
        if not isinstance(targets, Targets):
            raise VerificationError(mismatch(TRUST_FILE, "targets metadata", "something else", "fetch again"))
        return read_catalogue(targets)


def _payload(text: str) -> Any:
    return Metadata[Any].from_bytes(text.encode()).signed


def _version(text: str | None) -> int:
    return int(_payload(text).version) if text else 0


def first_trust(root: bytes) -> Trust:
    """Trust in a root that came by another way than the network.

    Raises:
        VerificationError: it is no root, or not signed by as many of its own keys as it says.
    """
    try:
        metadata: Metadata[Any] = Metadata.from_bytes(root)
        if not isinstance(metadata.signed, Root):
            raise RepositoryError(f"it is a {metadata.signed.type}")
        metadata.signed.verify_delegate(Root.type, metadata.signed_bytes, metadata.signatures)
    except RepositoryError as error:
        raise VerificationError(
            mismatch("--root", "a root signed by its own keys", str(error), "ask the publisher for 1.root.json")
        ) from error
    return Trust(anchor=hashlib.sha256(root).hexdigest(), root=root.decode())


def read_trust(store: Path) -> Trust | None:
    """The trusted metadata; None before its first root.

    Raises:
        VerificationError: the file is damaged.
    """
    path = store / TRUST_FILE
    try:
        trust = msgspec.json.decode(path.read_bytes(), type=Trust)
        for text in filter(None, (trust.root, *trust.roles.values())):
            _payload(text)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RepositoryError) as error:
        next_step = "remove it and begin again with --root"
        raise VerificationError(mismatch(str(path), "what quad wrote there", f"something else ({error})", next_step)) from error
    return trust


def write_trust(store: Path, trust: Trust) -> None:
    """Keep it.

    Raises:
        BackendError: the disk is full or the place cannot be written to.
    """
    write_bytes(store / TRUST_FILE, canonical_json(trust))
    sync_directory(store)


def same_anchor(trust: Trust, root: bytes) -> Trust:
    """The trust there is, when `--root` is given once more.

    Raises:
        UsageError: it is another root.
    """
    if hashlib.sha256(root).hexdigest() != trust.anchor:
        raise UsageError(
            mismatch("--root", f"the root {trust.anchor[:8]} of before", "another one", "leave it out, or use another --store")
        )
    return trust


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
    fetcher = MetadataFetcher(source)
    failure: QuadError | None = None
    cause: Exception | None = None
    try:
        Updater(str(scratch), "metadata/", fetcher=fetcher, bootstrap=trust.root.encode()).refresh()
    except DownloadError as error:
        failure, cause = download_error(error, f"{source.name}/{fetcher.path}"), error
    except RepositoryError as error:
        root = _payload(_newest_root(scratch) or trust.root)
        failure, cause = metadata_error(error, f"{source.name}/{fetcher.path}", fetcher.data, root), error
    # 2. What it verified there counts even where it failed later, a new root above all: it cannot be hidden again.
    verified = Trust(
        anchor=trust.anchor, root=_newest_root(scratch) or trust.root, url=trust.url if failure else source.name, roles=_roles_in(scratch)
    )
    # 3. Two checks that the specification leaves to its user: how far versions may go at once, and that targets are packs.
    fast_forward = _fast_forward(trust, verified, source.name)
    malformed = None if fast_forward or failure else _malformed(verified)
    # 4. As much of it is trusted from now on as those allow, and that is written before anything is raised.
    trusted = verified
    if fast_forward is not None:
        trusted = msgspec.structs.replace(trust, root=verified.root)
    elif malformed is not None:  # the list of packs of before is still good for what is installed
        trusted = msgspec.structs.replace(verified, roles={**verified.roles, "targets": trust.roles.get("targets", "")})
    _log_versions(trust, verified)
    if trusted != trust:  # a root that was given by mistake, and that nothing was verified with, is forgotten
        keep(trusted)
    wrong = fast_forward or failure or malformed
    if wrong is not None:
        _LOG.warning("refresh failed: %s", type(wrong).__name__)
        raise wrong from cause
    _LOG.info("refreshed to root %d, targets %d", _version(verified.root), _version(verified.roles.get("targets")))
    return verified


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
    roots = {int(path.name.split(".")[0]): path for path in (scratch / "root_history").glob("*.root.json")}
    return roots[max(roots)].read_text(encoding="utf-8") if roots else None


def _roles_in(scratch: Path) -> dict[str, str]:
    files = {role: scratch / f"{role}.json" for role in _ROLES}
    return {role: path.read_text(encoding="utf-8") for role, path in files.items() if path.is_file()}


def _fast_forward(before: Trust, after: Trust, where: str) -> QuadError | None:
    """A fast-forward: whoever has a role's key for an hour would else end all later versions."""
    for role, text in after.roles.items():
        last, version = _version(before.roles.get(role)), _version(text)
        if version > last + FARTHEST:
            return attack_error(f"{where}/metadata/{role}.json", f"a version of at most {last + FARTHEST}", str(version), "fast-forward")
    return None
