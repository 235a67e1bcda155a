"""An adapter on disk, and the way from there to what can be bound.

All of a file is hashed the first time that it is read, in a bundle when that is opened. Later it is taken to be the same as long as the
system says so (`Identity`): a file that was replaced or written to since is hashed again, and so is one that was changed so shortly before
that the clock could hide another change.
"""

from __future__ import annotations

import logging
from pathlib import Path
from time import time_ns

from quad.core.errors import CompatibilityError, InputError, VerificationError, mismatch
from quad.core.manifest import AdapterManifest
from quad.core.padding import pad
from quad.core.pickles import is_pickled
from quad.core.slots import SlotTable
from quad.core.storage.files import inside
from quad.core.storage.pack import check_digest, content_digest, pack_manifest, parse_adapter_manifest
from quad.core.storage.tensor_file import Identity, TensorFile, map_tensors
from quad.runtime.adapters.buffers import Buffers, check_tensors, padded_bytes
from quad.runtime.adapters.cache import MakeRoom
from quad.runtime.bundle import Bundle

_LOG = logging.getLogger(__name__)

MANIFEST_FILE, TENSORS_FILE = "adapter.json", "adapter.safetensors"


class AdapterFile:
    """Where an adapter lies and what it said of itself when it was found there. The file must stay."""

    def __init__(self, path: Path, manifest: AdapterManifest, *, packed: bool, hashed: Identity | None = None) -> None:
        """Args:
        path: the pack, or the file of tensors beside an `adapter.json`.
        packed: which of the two.
        hashed: which file was seen to have the manifest's digest already.
        """
        self.manifest = manifest
        self._path, self._packed, self._hashed = path, packed, hashed
        self._fits = False

    def check(self, slots: SlotTable, verify: bool = True) -> None:
        """See that it fits, and that it is whole.

        Args:
            verify: for the latter all of it is read once; False leaves that to `read`.

        Raises:
            InputError: it cannot be read.
            VerificationError: it was changed, or is no adapter for these slots.
        """
        file = map_tensors(self._path)
        if verify:
            self._check(file, slots)
        else:
            check_tensors(self.manifest.name, file.tensors, slots)

    def read(self, slots: SlotTable, zeros: Buffers, make_room: MakeRoom) -> Buffers:
        """Its buffers: the mapped file itself where all of its ranks are the slots', else a padded copy.

        Args:
            zeros: what stands for slots that it does not have.
            make_room: called with the bytes that its buffers will take, before they do.

        Raises:
            InputError, VerificationError: as `check`.
        """
        file = map_tensors(self._path)
        make_room(padded_bytes(file.tensors, zeros))
        self._check(file, slots)
        if any(tensor.shape != zeros[name].shape for name, tensor in file.tensors.items()):
            _LOG.debug("adapter %s: padded to the slots' ranks", self.manifest.name)
        return Buffers(pad(file.tensors, zeros))

    def _check(self, file: TensorFile, slots: SlotTable) -> None:
        if file.identity == self._hashed:
            file.touch()
        else:
            self._hash(file)
        if not self._fits:
            check_tensors(self.manifest.name, file.tensors, slots)
            self._fits = True  # for good: only the same bytes get here again

    def _hash(self, file: TensorFile) -> None:
        now_ns = time_ns()
        if self._packed and pack_manifest(file) != self.manifest:
            raise VerificationError(mismatch(file.where, f"the pack that was loaded as {self.manifest.name!r}", "another", "load it again"))
        digest = content_digest(file.tensors) if self._packed else file.sha256()
        check_digest(file.where, digest, self.manifest.sha256)
        self._hashed = file.identity if file.identity.settled(now_ns) else None


def open_adapter(path: Path) -> AdapterFile:
    """An adapter in a pack file, or in a directory with `adapter.json` and `adapter.safetensors`; its tensors are not looked at yet.

    Raises:
        InputError: there is nothing at `path`, or a pickle.
        VerificationError: it is no adapter, or its words were changed.
    """
    if path.is_dir():
        return open_directory(inside(path, MANIFEST_FILE), inside(path, TENSORS_FILE))
    if not path.is_file():
        raise InputError(mismatch(str(path), "a pack file or an adapter directory", "none", "check the path"))
    if is_pickled(path):
        next_step = "a pickle can run code when opened, save the adapter as safetensors and pack it with quad adapt"
        raise InputError(mismatch(str(path), "a pack", "pickled weights", next_step))
    return AdapterFile(path, pack_manifest(map_tensors(path)), packed=True)


def open_shipped(bundle: Bundle, name: str) -> AdapterFile:
    """An adapter of a bundle; opening the bundle has hashed it, unless that was not wanted.

    Raises:
        InputError, VerificationError: as `open_directory`.
    """
    shipped = f"adapters/{name}/{TENSORS_FILE}"
    manifest_file, tensors_file = bundle.adapter_files(name)
    manifest = open_directory(manifest_file, tensors_file).manifest
    same = bundle.manifest.files[shipped].sha256 == manifest.sha256
    return AdapterFile(tensors_file, manifest, packed=False, hashed=bundle.hashed.get(shipped) if same else None)


def open_directory(manifest_file: Path, tensors_file: Path) -> AdapterFile:
    """An adapter in two files, as in a bundle.

    Raises:
        InputError: one is missing.
        VerificationError: the first is no manifest.
    """
    for path in (manifest_file, tensors_file):
        if not path.is_file():
            raise InputError(mismatch(str(path.parent), path.name, "none", "check the path"))
    return AdapterFile(tensors_file, parse_adapter_manifest(str(manifest_file), manifest_file.read_bytes()), packed=False)


def check_parents(manifest: AdapterManifest, bundle: Bundle) -> None:
    """An adapter fits a bundle when slots digest and profile digest are the same; shapes prove nothing.

    Raises:
        CompatibilityError: it was packed for another bundle.
    """
    name, phone = manifest.name, bundle.manifest.name
    for parent, has in bundle.digests.items():
        packed_for = manifest.parents.get(parent, "none")
        if packed_for != has:
            raise CompatibilityError(
                f"adapter {name!r} was packed for {parent} {packed_for[:8]}, bundle {phone!r} has {has[:8]}: "
                f"run quad adapt {phone} {name}={name}.safetensors"
            )
