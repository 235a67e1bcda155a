"""Adapters on disk: a pack, a directory, or one of a bundle's own, and whether they were packed for this bundle.

All of a file is hashed the first time that it is read, in a bundle when that is opened. Later it is taken to be the same as long as the
system says so (`Identity`): a file that was replaced or written to since is hashed again, and so is one that was changed so shortly before
that the clock could hide another change.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import time_ns
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load

from quad.core.correction import correction_shapes
from quad.core.errors import CompatibilityError, InputError, VerificationError, mismatch
from quad.core.manifest import BASE_CORRECTION_FILE, AdapterManifest
from quad.core.slots import TEXT_ENCODER, UNET
from quad.core.storage.files import inside
from quad.core.storage.pack import check_digest, content_digest, pack_manifest, parse_adapter_manifest
from quad.core.storage.pickles import is_pickled
from quad.core.storage.reading import is_directory, is_file, reading_from
from quad.core.storage.stable_file import Identity
from quad.core.storage.tensor_file import FileContent, TensorFile, copy_content, map_content, open_header
from quad.runtime.adapters.buffers import Buffers, MakeRoom, ZeroBuffers, check_tensors, pad, padded_bytes, zero_buffers
from quad.runtime.bundle import Bundle

_LOG = logging.getLogger(__name__)

TEXT_PREFIX = f"{TEXT_ENCODER}."
MANIFEST_FILE, TENSORS_FILE = "adapter.json", "adapter.safetensors"


@dataclass(kw_only=True)
class AdapterFile:
    """Where an adapter lies and what it said of itself when it was found there. The file must stay.

    Args:
        path: the pack, or the file of tensors beside an `adapter.json`.
        packed: which of the two.
        mapped: it is the device's own, to which nobody writes, and is mapped; any other is read into memory.
        hashed: which file was seen to have the manifest's digest already.
        fits: its tensors are those of the slots.
    """

    path: Path
    manifest: AdapterManifest
    packed: bool
    mapped: bool
    hashed: Identity | None = None
    fits: bool = False

    def components(self) -> list[str]:
        """The graphs that its tensors are inputs of."""
        names = open_header(self.path).entries
        return [part for part in (UNET, TEXT_ENCODER) if any((part == TEXT_ENCODER) == name.startswith(TEXT_PREFIX) for name in names)]

    def check(self, zeros: ZeroBuffers, verify: bool = True) -> None:
        """See that it fits, and that it is whole.

        Args:
            zeros: the zero adapter of the slots.
            verify: for the latter all of it is read once; False leaves that to `read`.

        Raises:
            InputError: it cannot be read.
            VerificationError: it was changed, or is no adapter for these slots.
        """
        content = map_content(self.path) if self.mapped else copy_content(self.path)
        if verify:
            with self._checked_beside(content, zeros):
                pass
        else:
            check_tensors(self.manifest.name, content.parsed().tensors, zeros.slots)

    def read(self, zeros: ZeroBuffers, make_room: MakeRoom) -> Buffers:
        """Its buffers: the file itself where all of its ranks are the slots', else a padded copy.

        Args:
            zeros: the zero adapter of the slots; it stands for slots that this one does not have.
            make_room: called with the bytes that its buffers will take, before they do.

        Raises:
            InputError, VerificationError: as `check`.
        """
        if not self.mapped:
            make_room(padded_bytes(open_header(self.path).entries, zeros))
        content = map_content(self.path) if self.mapped else copy_content(self.path)
        with self._checked_beside(content, zeros) as tensors:
            if self.mapped:  # which has taken no memory of this process yet
                make_room(padded_bytes(tensors, zeros))
            buffers = pad(tensors, zeros)
        if any(buffers[name] is not tensor for name, tensor in tensors.items() if name in zeros):
            _LOG.debug("adapter %s: padded to the slots' ranks", self.manifest.name)
        return buffers

    def own_tensors(self, zeros: ZeroBuffers) -> dict[str, NDArray[Any]]:
        """Its tensors at its own ranks.

        Raises:
            InputError, VerificationError: as `check`.
        """
        with self._checked_beside(copy_content(self.path), zeros) as tensors:
            return dict(tensors)

    @contextmanager
    def _checked_beside(self, content: FileContent, zeros: ZeroBuffers) -> Iterator[Mapping[str, NDArray[Any]]]:
        """The block gets the tensors, seen to fit, while another thread reads and hashes the file, and is left when that is done.

        Raises:
            VerificationError: as `check`; a digest that is another goes before whatever else is wrong.
        """
        now_ns, known = time_ns(), content.identity == self.hashed
        if self.mapped:
            content.read_ahead()
        with ThreadPoolExecutor(1, "quad-hash") as beside:
            hashed = beside.submit(self._read, content, hashes=not known and not self.packed)
            try:
                file = content.parsed()
                if self.packed and not known:  # one digest of many tensors: the interpreter's lock would go to and fro
                    self._hash_pack(content.where, file)
                if not self.fits:
                    check_tensors(self.manifest.name, file.tensors, zeros.slots)
                yield file.tensors
            finally:
                hashed.result()
        self.hashed = content.identity if known or content.identity.settled(now_ns) else None
        self.fits = True  # for good: only the same bytes get here again

    def _read(self, content: FileContent, hashes: bool) -> None:
        if hashes:
            check_digest(content.where, content.sha256(), self.manifest.sha256)
        else:
            content.touch()

    def _hash_pack(self, where: str, file: TensorFile) -> None:
        if pack_manifest(where, file.metadata) != self.manifest:
            raise VerificationError(mismatch(where, f"the pack that was loaded as {self.manifest.name!r}", "another", "load it again"))
        check_digest(where, content_digest(file.tensors), self.manifest.sha256)


def open_adapter(path: Path, mapped: bool = False) -> AdapterFile:
    """An adapter in a pack file, or in a directory with `adapter.json` and `adapter.safetensors`; its tensors are not looked at yet.

    Args:
        mapped: see `AdapterFile`.

    Raises:
        InputError: there is nothing at `path`, or a pickle.
        VerificationError: it is no adapter, or its words were changed.
    """
    if is_directory(path):
        return open_directory(inside(path, MANIFEST_FILE), inside(path, TENSORS_FILE), mapped)
    if not is_file(path):
        raise InputError(mismatch(str(path), "a pack file or an adapter directory", "none", "check the path"))
    if is_pickled(path):
        next_step = "a pickle can run code when opened, save the adapter as safetensors and pack it with quad adapt"
        raise InputError(mismatch(str(path), "a pack", "pickled weights", next_step))
    return AdapterFile(path=path, manifest=pack_manifest(str(path), open_header(path).metadata), packed=True, mapped=mapped)


def open_shipped(bundle: Bundle, name: str) -> AdapterFile:
    """An adapter of a bundle; opening the bundle has hashed it, unless that was not wanted.

    Raises:
        InputError, VerificationError: as `open_directory`.
    """
    shipped = f"adapters/{name}/{TENSORS_FILE}"
    manifest_file, tensors_file = bundle.adapter_files(name)
    file = open_directory(manifest_file, tensors_file, mapped=True)
    if bundle.manifest.files[shipped].sha256 == file.manifest.sha256:
        file.hashed = bundle.hashed.get(shipped)
    return file


def open_directory(manifest_file: Path, tensors_file: Path, mapped: bool) -> AdapterFile:
    """An adapter in two files, as in a bundle.

    Raises:
        InputError: one is missing.
        VerificationError: the first is no manifest.
    """
    for path in (manifest_file, tensors_file):
        if not is_file(path):
            raise InputError(mismatch(str(path.parent), path.name, "none", "check the path"))
    with reading_from(manifest_file):
        manifest = parse_adapter_manifest(str(manifest_file), manifest_file.read_bytes())
    return AdapterFile(path=tensors_file, manifest=manifest, packed=False, mapped=mapped)


def bundle_zeros(bundle: Bundle) -> ZeroBuffers:
    """The zero adapter of a bundle, with its base's correction.

    Raises:
        VerificationError: as `correction_of`.
    """
    return zero_buffers(bundle.slots, bundle.profile, correction_of(bundle))


def correction_of(bundle: Bundle) -> dict[str, np.ndarray]:
    """Tensors of the base's correction as its file holds them, none where the base has none.

    Raises:
        VerificationError: the correction was changed, or is none for the bundle's slots.
    """
    if not bundle.slots.corrected:
        return {}
    tensors = load(bundle.read(BASE_CORRECTION_FILE))
    expected = correction_shapes(bundle.slots)
    for name in sorted(expected.keys() | tensors.keys()):
        actual = (tensors[name].dtype.name, tensors[name].shape) if name in tensors else None
        if actual != expected.get(name) or not np.isfinite(tensors[name]).all():
            where, shown = f"{bundle.root / BASE_CORRECTION_FILE}, {name}", expected.get(name, "none of that name")
            raise VerificationError(mismatch(where, shown, actual or "none", "build the bundle again"))
    return tensors


def check_parents(manifest: AdapterManifest, bundle: Bundle) -> None:
    """An adapter fits a bundle when slots digest and profile digest are the same and the bundle has its group; shapes prove nothing.

    Raises:
        CompatibilityError: it was packed for another bundle.
    """
    name, phone = manifest.name, bundle.name
    for parent, has in bundle.digests.items():
        packed_for = manifest.parents.get(parent, "none")
        if packed_for != has:
            raise CompatibilityError(
                f"adapter {name!r} was packed for {parent} {packed_for[:8]}, bundle {phone!r} has {has[:8]}: "
                f"run quad adapt {phone} {name}={name}.safetensors"
            )
    if manifest.group_number >= bundle.group_count:
        found = f"number {manifest.group_number + 1}"
        raise CompatibilityError(
            mismatch(f"adapter {name!r}", f"one of the {bundle.group_count} groups of bundle {phone!r}", found, "adapt it again")
        )
