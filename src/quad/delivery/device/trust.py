"""The metadata that a device trusts: one file, `STORE/trust.json`, written in one rename: a killed refresh has the old trust or the new."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Targets

from quad.core.digests import canonical_json
from quad.core.errors import UsageError, VerificationError, mismatch
from quad.core.storage.files import sync_directory, write_bytes
from quad.core.storage.reading import file_status, reading_from
from quad.delivery.address import holds_secret
from quad.delivery.offer import Catalogue, read_catalogue

TRUST_FILE = "trust.json"


class Trust(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """The texts of the metadata that was verified last.

    Args:
        anchor: digest of the root that was given at first.
        url: where the repository was read last.
        root: the newest root.
        roles: the others by name.
        redirects: origins beside its own that the repository may redirect to.
    """

    anchor: str
    root: str
    url: str = ""
    roles: dict[str, str] = {}
    redirects: tuple[str, ...] = ()

    def catalogue(self) -> Catalogue:
        """The packs on offer and revoked when the repository was read last; none before that.

        Raises:
            VerificationError: it is no list of packs.
        """
        if not self.roles.get("targets"):
            return Catalogue({}, ())
        targets = payload(self.roles["targets"])
        if not isinstance(targets, Targets):
            raise VerificationError(mismatch(TRUST_FILE, "targets metadata", "something else", "fetch again"))
        return read_catalogue(targets)


def payload(text: str) -> Any:
    """The signed part of metadata that was verified before.

    Raises:
        RepositoryError: it is no metadata.
    """
    return Metadata[Any].from_bytes(text.encode()).signed


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
    """The trusted metadata; None before its first root. An address with a password, as quad once kept it, is not used again.

    Raises:
        VerificationError: the file is damaged. BackendError: the system does not let it be read.
    """
    path = store / TRUST_FILE
    if file_status(path) is None:
        return None
    with reading_from(path):
        data = path.read_bytes()
    try:
        trust = msgspec.json.decode(data, type=Trust)
        for text in filter(None, (trust.root, *trust.roles.values())):
            payload(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RepositoryError) as error:
        next_step = "remove it and begin again with --root"
        raise VerificationError(mismatch(str(path), "what quad wrote there", f"something else ({error})", next_step)) from error
    return msgspec.structs.replace(trust, url="") if holds_secret(trust.url) else trust


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
