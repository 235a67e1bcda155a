"""The first state of a repository: new keys, their root, empty roles; begun again where an earlier try came to no end."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Root

from quad.core.errors import InputError, QuadError, mismatch
from quad.core.storage.reading import entry_names
from quad.delivery.publisher.keys import Keys
from quad.delivery.publisher.signed import (
    METADATA,
    ROLES,
    ROOT_KEYS,
    ROOT_THRESHOLD,
    State,
    empty_state,
    expiry,
    file_numbers,
    newest_root,
    now,
    write_root,
)

_BEGUN = re.compile(r"1\.(root|targets|snapshot)\.json|\..+\.part")  # before timestamp.json is there nobody can read it

Signers = dict[str, list[CryptoSigner]]


def begin(folder: Path, keys: Keys) -> tuple[State, Signers]:
    """A root that is written, with empty roles at version 0, which `publish` makes 1; and all of the signers.

    Raises:
        InputError: there is something else at the place, or keys of an earlier try under another password.
        UsageError: the keys of an earlier try are not there.
    """
    entries = entry_names(folder)
    if set(entries) - {METADATA} or not all(map(_BEGUN.fullmatch, entry_names(folder / METADATA))):
        raise InputError(mismatch(str(folder), "a new or empty directory", "something else", "choose another place"))
    if file_numbers(folder, Root.type):
        root = newest_root(folder)
        return empty_state(root), {role: keys.signers(role, root) for role in ROLES}
    return _new_root(folder, keys)


def _new_root(folder: Path, keys: Keys) -> tuple[State, Signers]:
    at = now()
    root = Root(expires=expiry(Root.type, at), consistent_snapshot=True)
    signers: Signers = {role: [] for role in ROLES}
    try:
        for role, role_signers in signers.items():
            for _ in range(ROOT_KEYS if role == Root.type else 1):
                role_signers.append(keys.make(role))
                root.add_key(role_signers[-1].public_key, role)
        root.roles[Root.type].threshold = ROOT_THRESHOLD
        write_root(folder, root, signers[Root.type])
    except BaseException:
        with suppress(QuadError, OSError):
            if not file_numbers(folder, Root.type):  # nothing names them
                for role, role_signers in signers.items():
                    for signer in role_signers:
                        keys.discard(role, signer.public_key.keyid)
        raise
    return empty_state(root), signers
