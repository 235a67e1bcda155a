"""The adapters of one bundle: read, checked, kept ready to bind."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from quad.core.errors import CompatibilityError, InputError, UsageError, VerificationError, mismatch
from quad.core.files import inside
from quad.core.manifest import AdapterManifest, TaskSpec
from quad.core.pack import Pack, parse_adapter_manifest, parse_tensors, read_pack
from quad.core.slots import SlotTable
from quad.runtime.bundle import Bundle
from quad.runtime.mix import Buffers, mix_adapters

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def zero_buffers(slots: SlotTable) -> Buffers:
    """The zero adapter, the base bit for bit: all slot encodings are symmetric, so integer zero is zero."""
    dtypes = {name: slot.dtype for slot in slots.slots for name in (slot.a_name, slot.b_name)}
    return {name: np.zeros(shape, dtypes[name]) for name, shape in slots.input_shapes().items()}


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


def check_tensors(pack: Pack, slots: SlotTable) -> None:
    """Every graph input once, in the slot's type and shape.

    Raises:
        VerificationError: the tensors are not what the slots digest promises.
    """
    where, then = f"adapter {pack.manifest.name!r}", "pack it again with quad adapt"
    zeros = zero_buffers(slots)
    if zeros.keys() != pack.tensors.keys():
        odd = sorted(zeros.keys() ^ pack.tensors.keys())
        raise VerificationError(mismatch(where, f"{len(zeros)} tensors", f"{len(pack.tensors)}, first odd one {odd[0]}", then))
    for name, zero in zeros.items():
        array = pack.tensors[name]
        if (array.dtype, array.shape) != (zero.dtype, zero.shape):
            raise VerificationError(mismatch(f"{where}, {name}", f"{zero.dtype} {zero.shape}", f"{array.dtype} {array.shape}", then))


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
        check_tensors(pack, self._bundle.slots)
        chosen = name or pack.manifest.name
        self._manifests[chosen] = pack.manifest
        self._buffers[chosen] = pack.tensors
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
            check_tensors(pack, self._bundle.slots)
            if pack.manifest.sha256 != manifest.sha256:
                found = pack.manifest.sha256[:8]
                raise VerificationError(mismatch(f"adapter {name!r}", f"digest {manifest.sha256[:8]}", found, "open the bundle again"))
            self._buffers[name] = pack.tensors
        return self._buffers[name]

    def mix(self, names: Sequence[str], weights: Sequence[float]) -> tuple[Buffers, tuple[str, ...]]:
        """Buffers of a weighted sum of adapters, with notes on what was lost. One adapter of weight 1 is returned as it is.

        Raises:
            CompatibilityError: their ranks together exceed a slot's.
        """
        if not names:
            return self._zeros, ()
        parts = {name: self.buffers(name) for name in names}
        if len(names) == 1 and weights[0] == 1.0:
            return parts[names[0]], ()
        return mix_adapters(parts, weights, self._bundle.slots, self._bundle.profile)

    def tasks(self) -> dict[str, TaskSpec]:
        """The bundle's tasks; an adapter's own entry goes before the bundle's, because an OLSS table belongs to the adapter."""
        tasks = dict(self._bundle.manifest.tasks)
        for name, manifest in self._manifests.items():
            for task, spec in manifest.tasks.items():
                tasks[task] = msgspec.structs.replace(spec, adapter=name)
        return tasks

    def size_bytes(self) -> int:
        """Memory that loaded adapters take."""
        return sum(array.nbytes for buffers in self._buffers.values() for array in buffers.values())

    def _admit_own(self, name: str) -> None:
        file = self._bundle.adapter_files(name)[0]
        manifest = parse_adapter_manifest(str(file), file.read_bytes())
        check_parents(manifest, self._bundle)
        self._manifests[name] = manifest
