"""Adapters on disk: a pack, a directory, or one of a bundle's own, and whether they were packed for this bundle."""

from __future__ import annotations

from pathlib import Path

from quad.core.errors import CompatibilityError, InputError, mismatch
from quad.core.manifest import AdapterManifest
from quad.core.pickles import is_pickled
from quad.core.storage.files import inside
from quad.core.storage.pack import pack_manifest, parse_adapter_manifest
from quad.core.storage.reading import is_directory, is_file, reading_from
from quad.core.storage.tensor_file import open_header
from quad.runtime.adapters.buffers import AdapterFile
from quad.runtime.bundle import Bundle

MANIFEST_FILE, TENSORS_FILE = "adapter.json", "adapter.safetensors"


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


def check_parents(manifest: AdapterManifest, bundle: Bundle) -> None:
    """An adapter fits a bundle when slots digest and profile digest are the same; shapes prove nothing.

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
