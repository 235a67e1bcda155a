"""The adapters of one bundle: read, checked, kept ready to bind."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from threading import Thread

import msgspec

from quad.core.errors import CompatibilityError, InputError, QuadError, UsageError, VerificationError, mismatch
from quad.core.files import inside
from quad.core.manifest import AdapterManifest, TaskSpec
from quad.core.pack import Pack, parse_adapter_manifest, parse_tensors, read_pack
from quad.core.padding import pad
from quad.runtime.buffers import Buffers, check_tensors, size_bytes, zero_buffers
from quad.runtime.bundle import Bundle
from quad.runtime.mix import mix_adapters

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def read_adapter(path: Path) -> Pack:
    """An adapter from a pack file, or from a directory with `adapter.json` and `adapter.safetensors`.

    Raises:
        InputError: there is nothing at `path`, or a pickle.
        VerificationError: it is no adapter, or it was changed.
    """
    if path.is_dir():
        return _read_directory(inside(path, "adapter.json"), inside(path, "adapter.safetensors"))
    if not path.is_file():
        raise InputError(mismatch(str(path), "a pack file or an adapter directory", "none", "check the path"))
    if path.suffix in PICKLED:
        then = "a pickle can run code when opened, save the adapter as safetensors and pack it with quad adapt"
        raise InputError(mismatch(str(path), "a pack", "pickled weights", then))
    return read_pack(path)


def _read_directory(manifest_file: Path, tensor_file: Path) -> Pack:
    for path in (manifest_file, tensor_file):
        if not path.is_file():
            raise InputError(mismatch(str(path.parent), path.name, "none", "check the path"))
    manifest = parse_adapter_manifest(str(manifest_file), manifest_file.read_bytes())
    data = tensor_file.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != manifest.sha256:
        then = "the file was changed or damaged, fetch it again"
        raise VerificationError(mismatch(str(tensor_file), f"digest {manifest.sha256[:8]}", found[:8], then))
    return Pack(manifest, parse_tensors(str(tensor_file), data))


def check_parents(manifest: AdapterManifest, bundle: Bundle) -> None:
    """An adapter fits a bundle when slots digest and profile digest are the same; shapes prove nothing.

    Raises:
        CompatibilityError: it was packed for another bundle.
    """
    name, phone = manifest.name, bundle.manifest.name
    for parent, has in (("slots", bundle.slots.digest), ("profile", bundle.profile.digest)):
        found = manifest.parents.get(parent, "none")
        if found != has:
            raise CompatibilityError(
                f"adapter {name!r} was packed for {parent} {found[:8]}, bundle {phone!r} has {has[:8]}: "
                f"run quad adapt {phone} {name}={name}.safetensors"
            )


class AdapterStore:
    """Adapters by name. Tensors are read when first used and kept, so that a warm switch reads nothing."""

    def __init__(self, bundle: Bundle) -> None:
        """Read the manifests of the bundle's own adapters.

        Raises:
            CompatibilityError: one was packed for another bundle.
        """
        self._bundle = bundle
        self._zeros = zero_buffers(bundle.slots)
        self._manifests: dict[str, AdapterManifest] = {}
        self._buffers: dict[str, Buffers] = {}
        for name in bundle.manifest.adapters:
            self._admit_own(name)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._manifests)

    @property
    def zeros(self) -> Buffers:
        """Buffers of the zero adapter; not to be written to."""
        return self._zeros

    def manifest(self, name: str) -> AdapterManifest:
        """What an adapter says of itself.

        Raises:
            UsageError: no adapter has that name; the message lists those there are.
        """
        if name not in self._manifests:
            known = ", ".join(self._manifests) or "none loaded"
            raise UsageError(mismatch("adapter", f"one of {known}", repr(name), "choose one of these or load_lora_weights first"))
        return self._manifests[name]

    def load(self, path: str | Path, name: str | None = None) -> str:
        """Admit an adapter from outside the bundle.

        Args:
            path: pack file or adapter directory.
            name: what to call it, None for its own name; a loaded adapter of that name is replaced.

        Returns:
            What it is called.

        Raises:
            CompatibilityError: it was packed for another bundle.
            VerificationError: it was changed, or is no adapter.
        """
        pack = read_adapter(Path(path))
        check_parents(pack.manifest, self._bundle)
        buffers = self._padded(pack)
        chosen = name or pack.manifest.name
        self._manifests[chosen], self._buffers[chosen] = pack.manifest, buffers
        return chosen

    def drop(self, name: str) -> None:
        """Free an adapter's tensors and forget it; the bundle's own of that name stays known and is read again when used."""
        self.manifest(name)
        del self._manifests[name]
        self._buffers.pop(name, None)
        if name in self._bundle.manifest.adapters:
            self._admit_own(name)

    def buffers(self, name: str) -> Buffers:
        """Graph input name -> array of one adapter; not to be written to.

        Raises:
            UsageError: no adapter has that name.
            VerificationError: its file was changed.
        """
        manifest = self.manifest(name)
        if name not in self._buffers:
            pack = _read_directory(*self._bundle.adapter_files(name))
            if pack.manifest.sha256 != manifest.sha256:
                found = pack.manifest.sha256[:8]
                raise VerificationError(mismatch(f"adapter {name!r}", f"digest {manifest.sha256[:8]}", found, "open the bundle again"))
            self._buffers[name] = self._padded(pack)
        return self._buffers[name]

    def mix(self, names: Sequence[str], weights: Sequence[float]) -> tuple[Buffers, tuple[str, ...]]:
        """Buffers of a weighted sum of adapters, with notes on what was lost. One adapter of weight 1 is returned as it is.

        Raises:
            UsageError: no adapter has that name.
            CompatibilityError: their ranks together exceed a slot's by too much.
        """
        for name in names:
            self.manifest(name)
        used = {name: weight for name, weight in zip(names, weights, strict=True) if weight}
        parts = {name: self.buffers(name) for name in used}
        if not parts:
            return self._zeros, ()
        if list(used.values()) == [1.0]:
            return next(iter(parts.values())), ()
        return mix_adapters(parts, used, self._bundle.slots, self._zeros)

    def pinned(self, names: Sequence[str]) -> AbstractContextManager[None]:
        """While inside, these adapters stay in memory; nothing is ever put out of it yet."""
        for name in names:
            self.manifest(name)
        return nullcontext()

    def preload(self, name: str) -> None:
        """Read an adapter on another thread.

        Raises:
            UsageError: no adapter has that name. What is wrong with its file is told when it is used.
        """
        self.manifest(name)
        Thread(target=self._read_ahead, args=(name,), name=f"preload {name}", daemon=True).start()

    def _read_ahead(self, name: str) -> None:
        with suppress(QuadError, OSError):
            self.buffers(name)

    def tasks(self) -> dict[str, TaskSpec]:
        """The bundle's tasks; an adapter's own entry goes before the bundle's, because an OLSS table belongs to the adapter."""
        tasks = dict(self._bundle.manifest.tasks)
        for name, manifest in dict(self._manifests).items():  # a copy: another thread may load one meanwhile
            for task, spec in manifest.tasks.items():
                tasks[task] = msgspec.structs.replace(spec, adapter=name)
        return tasks

    def size_bytes(self) -> int:
        """Memory that loaded adapters take, each at the slots' ranks; zeros that stand for slots they do not have are not theirs."""
        shared = {id(zero) for zero in self._zeros.values()}
        return size_bytes(array for buffers in self._buffers.values() for array in buffers.values() if id(array) not in shared)

    def _padded(self, pack: Pack) -> Buffers:
        check_tensors(pack.manifest.name, pack.tensors, self._bundle.slots)
        return pad(pack.tensors, self._bundle.slots, self._zeros)

    def _admit_own(self, name: str) -> None:
        file = self._bundle.adapter_files(name)[0]
        manifest = parse_adapter_manifest(str(file), file.read_bytes())
        check_parents(manifest, self._bundle)
        self._manifests[name] = manifest
