"""The files of a device's store, and what a new start makes of those that a killed one has left.

    STORE/trust.json       see `quad.delivery.device.trust`
    STORE/installed/       pointers, see `quad.core.storage.install_pointers`
    STORE/packs/           packs that a pointer names
    STORE/fetched/         whole and verified packs on offer, not installed yet
    STORE/partial/         packs on offer of which a part is there
    STORE/.stage/          of the process at work; gone at the next start

What of it no pointer and no offer names is removed; a file that is not called as quad calls its own is left alone.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import final

from quad.core.errors import InputError, VerificationError, mismatch
from quad.core.storage.files import directory_lock, sync_directory, writing_to
from quad.core.storage.install_pointers import (
    PACKS,
    POINTERS,
    Installed,
    Version,
    is_whole,
    pack_path,
    pointer_names,
    pointer_path,
    read_pointer,
    remove_pointer,
    write_pointer,
)
from quad.core.storage.pack import PACK_SUFFIX
from quad.core.storage.reading import entry_names
from quad.delivery.device.events import Change
from quad.delivery.device.trust import TRUST_FILE
from quad.delivery.offer import Catalogue, Offer

_LOG = logging.getLogger(__name__)

FETCHED, PARTIAL, STAGE = "fetched", "partial", ".stage"
_PACK = re.compile(rf"[0-9a-f]{{64}}{re.escape(PACK_SUFFIX)}")
_POINTER_PART, _TRUST_PART = re.compile(r"\..+\.part"), re.compile(rf"\.{re.escape(TRUST_FILE)}(\..+)?\.part")


@final
@dataclass(frozen=True)
class Store:
    """A store on disk."""

    folder: Path

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One installer at a time.

        Raises:
            InputError: another one is at work.
        """
        in_use = InputError(mismatch(str(self.folder), "no other installer at work on it", "one", "wait for it or choose another --store"))
        with directory_lock(self.folder, in_use):
            yield

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """An empty directory while the block runs.

        Raises:
            BackendError: for every OSError of the block, that writes there.
        """
        stage = self.folder / STAGE
        with writing_to(stage):
            stage.mkdir(parents=True)
            try:
                yield stage
            finally:
                shutil.rmtree(stage, ignore_errors=True)

    def fetched(self, offer: Offer) -> Path:
        """Where a verified pack waits."""
        return self.folder / FETCHED / f"{offer.sha256}{PACK_SUFFIX}"

    def partial(self, offer: Offer) -> Path:
        """Where a pack's bytes come in."""
        return self.folder / PARTIAL / f"{offer.sha256}{PACK_SUFFIX}"

    def move(self, source: Path, place: Path) -> None:
        """Give a whole file its next place, for good.

        Raises:
            BackendError: the place cannot be written to.
        """
        with writing_to(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(source, place)
        sync_directory(place.parent)
        sync_directory(source.parent)
        sync_directory(self.folder)  # where the directory of the place may be new

    def recover(self, catalogue: Catalogue) -> list[Change]:
        """Bring the store to rest: adapters that cannot or must not run step back, and what nothing names is removed.

        Args:
            catalogue: what is on offer and revoked, as far as the device knows.
        """
        changes = self._step_back(catalogue)
        self._remove_orphans(catalogue)
        return changes

    def pointers(self) -> dict[str, Installed | None]:
        """Every pointer by name; None for a damaged one.

        Raises:
            BackendError: the system does not let them be listed, or one be read; nobody may call it damaged and remove it.
        """
        pointers: dict[str, Installed | None] = {}
        for name in pointer_names(self.folder):
            try:
                pointers[name] = read_pointer(pointer_path(self.folder, name))
            except VerificationError:
                pointers[name] = None
        return pointers

    def _step_back(self, catalogue: Catalogue) -> list[Change]:
        changes = []
        for name, pointer in self.pointers().items():
            if pointer is None:
                remove_pointer(self.folder, name)
                changes.append(Change(name=name, was=0, now=None, why="its pointer was damaged"))
                continue
            why = self._obstacle(pointer.current, catalogue)
            back = pointer.previous
            sound = back if back is not None and not self._obstacle(back, catalogue) else None
            if why and sound is not None:
                write_pointer(self.folder, Installed(name, sound))
            elif why:
                remove_pointer(self.folder, name)
            elif back is not None and sound is None:
                write_pointer(self.folder, Installed(name, pointer.current))
            if why:
                changes.append(Change(name=name, was=pointer.current.version, now=sound.version if sound else None, why=why))
        return changes

    def _obstacle(self, version: Version, catalogue: Catalogue) -> str:
        """Why a version must not run; empty where it may."""
        revocation = catalogue.revocation(version.sha256)
        if revocation is not None:
            return f"revoked: {revocation.reason}" if revocation.reason else "revoked"
        return "" if is_whole(self.folder, version) else "its pack was gone or cut"

    def _remove_orphans(self, catalogue: Catalogue) -> None:
        versions = [
            version for pointer in self.pointers().values() if pointer for version in (pointer.current, pointer.previous) if version
        ]
        offered = {f"{offer.sha256}{PACK_SUFFIX}" for offers in catalogue.offers.values() for offer in offers}
        packs = {pack_path(self.folder, version.sha256).name for version in versions}
        with writing_to(self.folder):
            shutil.rmtree(self.folder / STAGE, ignore_errors=True)
            for place, expected in ((PACKS, packs), (FETCHED, offered - packs), (PARTIAL, offered - packs)):
                for name in entry_names(self.folder / place):
                    if name not in expected and _PACK.fullmatch(name):
                        (self.folder / place / name).unlink()
                        _LOG.info("orphan removed: %s/%s", place, name)
            for folder, pattern in ((self.folder / POINTERS, _POINTER_PART), (self.folder, _TRUST_PART)):
                for name in filter(pattern.fullmatch, entry_names(folder)):
                    (folder / name).unlink()
                    _LOG.info("orphan removed: %s", name)
