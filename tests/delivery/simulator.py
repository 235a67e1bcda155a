"""A publisher, a server that an attacker holds, and a device: all in one directory, without a network.

world/repo      what the publisher writes
world/keys      its keys
world/server    what the device is given: a copy of `repo`, or what an attack has made of it
world/store     the device's adapters
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile

from quad.core.manifest import AdapterManifest
from quad.core.storage.install_pointers import read_installed
from quad.core.storage.pack import write_pack
from quad.delivery.device.device import Device
from quad.delivery.device.events import Access, Callbacks, Change
from quad.delivery.device.fit import Platform
from quad.delivery.publisher.keys import Keys
from quad.delivery.publisher.repository import Repository
from quad.delivery.publisher.signed import read_state
from quad.delivery.publisher.terms import PublishTerms

PASSWORD = b"a password of tests"
PARENTS = {"slots": "5" * 64, "profile": "9" * 64}
TERMS = PublishTerms("0.1", "1", 1000)


def make_pack(path: Path, seed: int = 0, name: str = "ink", parents: dict[str, str] | None = None, size: int = 64) -> Path:
    """A pack of `4 * size` bytes of integers, another one for each seed."""
    tensors = {f"{part}.lora_{part}": np.random.default_rng([seed, size]).integers(-99, 99, size).astype(np.int16) for part in "AB"}
    write_pack(
        path,
        AdapterManifest(
            name=name, format_version=1, rank=2, bits=16, size_bytes=0, sha256="", parents=PARENTS if parents is None else parents
        ),
        tensors,
    )
    return path


def nothing(_: Path) -> None:
    """A smoke run that finds nothing."""


@dataclass
class World:
    """One publisher, one server, one device."""

    home: Path
    parents: dict[str, str] = field(default_factory=lambda: dict(PARENTS))
    changes: list[Change] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.keys = Keys(self.home / "keys", PASSWORD)
        self.repository = Repository(self.home / "repo", self.keys)
        self.server, self.store = self.home / "server", self.home / "store"
        self.root = self.repository.init()
        self.serve()

    def add(self, seed: int, **options: Any) -> Path:
        """The publisher offers one more pack."""
        path = make_pack(self.home / f"pack{seed}.qpack", seed, **{"parents": self.parents, **options})
        self.repository.add([path], TERMS)
        self.serve()
        return path

    def serve(self) -> None:
        """The server is honest."""
        shutil.rmtree(self.server, ignore_errors=True)
        shutil.copytree(self.home / "repo", self.server)

    def device(self, **platform: Any) -> Device:
        """The device; each is a new process as far as the store can tell."""
        platform = Platform(**{"bundle": "phone", "parents": self.parents, "release": "0.1.0", "ram_bytes": 10**9, **platform})
        access = Access(url=str(self.server), root=self.root.read_bytes())
        return Device(self.store, platform, access=access, callbacks=Callbacks(self.changes.append))

    def install(self, wish: str = "ink") -> int:
        """Which version runs then."""
        return self.device().install(wish, nothing).version

    def running(self) -> dict[str, bytes]:
        """Bytes that each adapter runs from."""
        return {name: path.read_bytes() for name, path in read_installed(self.store).items()}

    def files(self) -> set[str]:
        """Every file of the store."""
        return {path.relative_to(self.store).as_posix() for path in self.store.rglob("*") if path.is_file() or path.is_symlink()}

    def signers(self, role: str) -> list[CryptoSigner]:
        """A role's own keys."""
        return self.keys.signers(role, read_state(self.home / "repo").root)

    def metadata(self, role: str) -> Path:
        """The server's newest file of a role."""
        if role == "timestamp":
            return self.server / "metadata/timestamp.json"
        return max((self.server / "metadata").glob(f"*.{role}.json"), key=lambda path: int(path.name.split(".")[0]))

    def forge(self, role: str, change: Callable[[Any], None], signers: Sequence[CryptoSigner] | None = None) -> None:
        """Change the server's metadata of a role and sign it, with the role's own keys where none are given."""
        path = self.metadata(role)
        found: Metadata[Any] = Metadata.from_file(str(path))
        change(found.signed)
        found.signatures.clear()
        for signer in self.signers(role) if signers is None else signers:
            found.sign(signer, append=True)
        path.write_bytes(found.to_bytes())

    def forge_targets(self, change: Callable[[Any], None]) -> None:
        """Change the list of packs as one who holds the keys of targets, snapshot and timestamp; each goes one version up."""
        path = self.metadata("targets")

        def raised(signed: Any) -> None:
            signed.version += 1
            change(signed)

        path.replace(path.with_name(f"{int(path.name.split('.')[0]) + 1}.targets.json"))
        self.forge("targets", raised)
        number = int(self.metadata("targets").name.split(".")[0])
        self._raise_snapshot(number)

    def _raise_snapshot(self, targets: int) -> None:
        path = self.metadata("snapshot")
        number = int(path.name.split(".")[0]) + 1
        path.replace(path.with_name(f"{number}.snapshot.json"))

        def snapshot(signed: Any) -> None:
            signed.version = number
            signed.meta["targets.json"] = self._named(f"{targets}.targets.json", targets)

        def timestamp(signed: Any) -> None:
            signed.version += 1
            signed.snapshot_meta = self._named(f"{number}.snapshot.json", number)

        self.forge("snapshot", snapshot)
        self.forge("timestamp", timestamp)

    def _named(self, name: str, version: int) -> MetaFile:
        """The server's file as honest metadata names it."""
        data = (self.server / "metadata" / name).read_bytes()
        return MetaFile(version, len(data), {"sha256": hashlib.sha256(data).hexdigest()})

    def pack_files(self) -> list[Path]:
        """Packs on the server."""
        return sorted((self.server / "targets").rglob("*.qpack"))


def expire(signed: Any) -> None:
    """Metadata of yesterday, newer than what was there."""
    signed.version += 1
    signed.expires = datetime.now(UTC).replace(microsecond=0) - timedelta(days=1)


def flip(path: Path, at: int = -1) -> None:
    """One byte is another."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


def rewrite_json(path: Path, change: Callable[[Any], None]) -> None:
    """Change a file's text and leave its signatures as they are."""
    text = json.loads(path.read_bytes())
    change(text)
    path.write_bytes(msgspec.json.encode(text))
