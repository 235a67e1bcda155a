"""Signing keys in files: Ed25519, PKCS8 PEM under a password, readable by their owner alone, in a directory that is never published."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat, load_pem_private_key
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Root

from quad.core.errors import InputError, UsageError, mismatch
from quad.core.storage.files import real_path, sync_directory, writing_to
from quad.core.storage.reading import is_file, reading_from

_LOG = logging.getLogger(__name__)

SHORTEST_PASSWORD, LONGEST_PASSWORD = 8, 1023  # the longest one that OpenSSL takes
_SHOWN = 16  # digits of a key's id in a file name
_RETIRED = "retired"


@final
class Keys:
    """The key files of a publisher.

    Args:
        folder: where they lie, as `ROLE-KEYID.pem`.
        password: of every file.
        root_folder: where the root's lie, None for `folder`; a stick that is plugged in for `rotate` alone, for instance.
    """

    def __init__(self, folder: Path, password: bytes, root_folder: Path | None = None) -> None:
        """Take the password.

        Raises:
            UsageError: it is too short, or too long.
        """
        if len(password) < SHORTEST_PASSWORD:
            raise UsageError(mismatch("password", f"{SHORTEST_PASSWORD} characters or more", len(password), "choose a longer one"))
        if len(password) > LONGEST_PASSWORD:
            raise UsageError(mismatch("password", f"{LONGEST_PASSWORD} bytes or fewer", len(password), "choose a shorter one"))
        self._folder, self._password, self._root_folder = folder, password, root_folder or folder

    def require_apart_from(self, repository: Path) -> None:
        """Refuse key files where they would be published.

        Raises:
            UsageError: a key directory is the repository or lies in it.
        """
        for folder in (self._folder, self._root_folder):
            if real_path(folder).is_relative_to(real_path(repository)):
                raise UsageError(
                    mismatch("--keys", f"a directory outside of {repository}", str(folder), "keys must not be published, choose another")
                )

    def make(self, role: str) -> CryptoSigner:
        """A new key, written before it is used.

        Raises:
            BackendError: the place cannot be written to.
        """
        private = Ed25519PrivateKey.generate()
        signer = CryptoSigner(private)
        pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(self._password))
        path = self._path(role, signer.public_key.keyid)
        with writing_to(path):
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                with open(handle, "wb") as stream:
                    stream.write(pem)
                    stream.flush()
                    os.fsync(stream.fileno())
                sync_directory(path.parent)
            except BaseException:
                self.discard(role, signer.public_key.keyid)
                raise
        _LOG.info("key of role %s made: %s", role, signer.public_key.keyid[:8])
        return signer

    def signers(self, role: str, root: Root, least: int | None = None) -> list[CryptoSigner]:
        """The keys of a role, as a root names them, that are at hand.

        Args:
            least: how many there must be, None for as many as the role needs.

        Raises:
            UsageError: fewer than that. InputError: wrong password or damaged file.
        """
        named = root.roles[role]
        signers = [self._open(self._path(role, keyid), keyid) for keyid in named.keyids if is_file(self._path(role, keyid))]
        least_keys = named.threshold if least is None else least
        if len(signers) < least_keys:
            where = str(self._path(role, "").parent)
            raise UsageError(mismatch(where, f"{least_keys} keys of role {role}", len(signers), "name the directory that holds them"))
        return signers

    def discard(self, role: str, keyid: str) -> None:
        """Remove the file of a key that nothing names, where the system lets it be removed."""
        with suppress(OSError):
            self._path(role, keyid).unlink()

    def retire(self, role: str, keyid: str) -> None:
        """Put a key's file aside that signs no more.

        Raises:
            BackendError: the place cannot be written to.
        """
        path = self._path(role, keyid)
        if is_file(path):
            with writing_to(path):
                (path.parent / _RETIRED).mkdir(exist_ok=True, mode=0o700)
                path.replace(path.parent / _RETIRED / path.name)
            _LOG.info("key of role %s retired: %s", role, keyid[:8])

    def _path(self, role: str, keyid: str) -> Path:
        return (self._root_folder if role == Root.type else self._folder) / f"{role}-{keyid[:_SHOWN]}.pem"

    def _open(self, path: Path, keyid: str) -> CryptoSigner:
        with reading_from(path):
            pem = path.read_bytes()
        try:
            signer = CryptoSigner(load_pem_private_key(pem, self._password))
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise InputError(
                mismatch(str(path), "a key under this password", "another password, or a damaged file", "try again")
            ) from error
        if signer.public_key.keyid != keyid:
            raise InputError(mismatch(str(path), f"key {keyid[:8]}", signer.public_key.keyid[:8], "put the right file there"))
        return signer
