"""The adapters of one bundle, its own and those installed beside it: registered by name on disk, in memory while there is room for them."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock

import msgspec

from quad.core.errors import UsageError, mismatch
from quad.core.manifest import AdapterManifest, TaskSpec
from quad.core.sampling import AdapterDefaults
from quad.runtime.adapters.block_weights import Weight
from quad.runtime.adapters.buffers import Buffers, ZeroBuffers, padded_bytes
from quad.runtime.adapters.cache import BufferCache
from quad.runtime.adapters.file import AdapterFile, bundle_zeros, check_parents, open_adapter, open_shipped
from quad.runtime.adapters.weighted_sum import mix_adapters, strength_notes
from quad.runtime.arguments import path_of, text, whole_number
from quad.runtime.bundle import Bundle

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class StoreMetrics:
    """The figures of a store: its memory now, and what it did since it began.

    Args:
        hits: uses that found their adapter in memory.
        misses: uses that waited for it to be read.
        evictions: adapters let go of for want of room.
        loads: adapters read, for a use or ahead of it.
        load_ms: wall-clock of these reads together.
        loaded_bytes: memory of adapters now, mapped files included.
        registered: adapters that can be used.
    """

    hits: int
    misses: int
    evictions: int
    loads: int
    load_ms: float
    loaded_bytes: int
    registered: int


class AdapterStore:
    """Adapters by name. A registered one costs its manifest; its tensors are mapped when first used, and kept within a budget.

    Mixes count as memory in use: they are made when asked for, and live as long as somebody uses them.

    All methods may be called from any thread.
    """

    def __init__(self, bundle: Bundle, budget_bytes: int | None = None) -> None:
        """Read the manifests of the bundle's own adapters.

        Args:
            budget_bytes: of memory for adapters, None for no bound. What is pinned or in use is never taken away for it, and one adapter
                may always be there: smaller than that, it is exceeded.

        Raises:
            UsageError: the budget is below zero.
            CompatibilityError: one was packed for another bundle.
        """
        if budget_bytes is not None:
            whole_number("adapter budget", budget_bytes, 0, "give bytes, or leave it out for no bound")
        self._bundle = bundle
        self._zeros = bundle_zeros(bundle)
        self._manifests: dict[str, AdapterManifest] = {}
        self._files: dict[str, AdapterFile] = {}
        self._cache = BufferCache(budget_bytes)
        self._ahead = ThreadPoolExecutor(1, "quad-preload")
        self._lock = Lock()  # what an adapter says and how it is read change together
        self._changes = 0
        for name in bundle.manifest.adapters:
            self._register_shipped(name)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._manifests)

    @property
    def changes(self) -> int:
        """How often an adapter came, went or was replaced: between two equal answers every name stood for one adapter."""
        with self._lock:
            return self._changes

    @property
    def zeros(self) -> ZeroBuffers:
        """Buffers of the zero adapter; not to be written to."""
        return self._zeros

    def manifest(self, name: str) -> AdapterManifest:
        """The manifest of an adapter.

        Raises:
            UsageError: no adapter has that name; the message lists those there are.
        """
        manifest = self._manifests.get(text("adapter", name))
        if manifest is None:
            names = ", ".join(self.names) or "none loaded"
            way = "choose one of these; a pack is loaded by load_lora_weights or --adapter FILE.qpack, or installed by quad install"
            if name.endswith(".safetensors"):
                way = "pack it first: quad adapt BUNDLE NAME=FILE -o NAME.qpack, then --adapter NAME.qpack"
            raise UsageError(mismatch("adapter", f"one of {names}", repr(name), way))
        return manifest

    def register(self, path: str | Path, name: str | None = None, verify: bool = True, mapped: bool = False) -> str:
        """Register an adapter from outside the bundle. The file is read again when it is used.

        Args:
            path: pack file or adapter directory, which must stay there.
            name: what to call it, None for its own name; a loaded adapter of that name is replaced, and whoever uses that one keeps it.
            verify: read and hash all of it now; False leaves that to its first use, and checks only what it says of itself.
            mapped: it is the device's own, to which nobody writes, and may be mapped.

        Returns:
            What it is called.

        Raises:
            CompatibilityError: it was packed for another bundle.
            VerificationError: it was changed, or is no adapter.
        """
        stated = None if name is None else text("adapter_name", name)
        file = open_adapter(path_of("path", path), mapped)
        check_parents(file.manifest, self._bundle)
        file.check(self._zeros, verify)
        name = stated or file.manifest.name
        self._register(name, file)
        return name

    def unregister(self, name: str) -> None:
        """Let go of an adapter; one that its bundle ships under that name is registered again in its place, and read when it is used.

        Raises:
            UsageError: no adapter has that name.
        """
        self.manifest(name)
        if name in self._bundle.manifest.adapters:
            self._register_shipped(name)
            return
        with self._lock:
            self._manifests.pop(name, None)
            self._files.pop(name, None)
            self._cache.unregister(name)
            self._changes += 1
        _LOG.info("adapter %s: unregistered", name)

    def buffers(self, name: str) -> Buffers:
        """Graph input name -> array of one adapter; not to be written to. Who uses the arrays holds the answer: so long they are in use.

        Raises:
            UsageError: no adapter has that name.
            VerificationError: its file was changed.
        """
        self.manifest(name)
        return self._cache.get(name)

    def pinned(self, names: Collection[str]) -> AbstractContextManager[None]:
        """While inside, these adapters stay in memory once they are there. Nested and from several threads, each counts."""
        return self._cache.pinned(names)

    def preload(self, name: str) -> None:
        """Have an adapter read by the time it is used, on a thread of the store's own; an error shows when it is used.

        Raises:
            UsageError: no adapter has that name.
        """
        self.manifest(name)
        with suppress(RuntimeError):  # closed: a hint is of no use any more
            self._ahead.submit(self._cache.get, name, hint=True)

    def mix(self, names: Sequence[str], weights: Sequence[Weight]) -> tuple[Buffers, tuple[str, ...]]:
        """Buffers of a weighted sum of adapters, with notes on what was lost. One adapter of weight 1 is returned as it is.

        Raises:
            UsageError: no adapter has that name, or a weight is beyond all numbers.
            CompatibilityError: their ranks together exceed a slot's by too much.
        """
        used = {name: weight for name, weight in zip(names, weights, strict=True) if weight}
        rooms = {name: self.manifest(name).headroom for name in names}
        parts = {name: self.buffers(name) for name in used}
        notes = strength_notes(used, rooms, self._bundle.slots)
        if not parts:
            return self._zeros, ()
        if list(used.values()) == [1.0]:
            return next(iter(parts.values())), notes
        mixed, lost = mix_adapters(parts, used, self._bundle.slots, self._zeros)
        shared = self._zeros if mixed.source is None else mixed.source
        self._cache.count(mixed, padded_bytes((name for name in mixed if mixed[name] is not shared[name]), self._zeros))
        return mixed, (*lost, *notes)

    def group_of(self, weights: Mapping[str, Weight]) -> int:
        """The group of adapters, counted from 0, whose graph a weighted sum runs in: the last of those of its parts, for groups stand in
        the order of how wide their ranges are. The base is of the first.

        Raises:
            UsageError: no adapter has that name.
        """
        return max((self.manifest(name).group_number for name, weight in weights.items() if weight), default=0)

    def tasks(self) -> dict[str, TaskSpec]:
        """The bundle's tasks; an adapter's own entry goes before the bundle's, because an OLSS table belongs to the adapter."""
        tasks = dict(self._bundle.manifest.tasks)
        for name, manifest in tuple(self._manifests.items()):
            for task, spec in manifest.tasks.items():
                tasks[task] = msgspec.structs.replace(spec, adapter=name)
        return tasks

    def components(self, name: str) -> list[str]:
        """The graphs that an adapter changes, as its file lists them.

        Raises:
            UsageError: no adapter has that name.
        """
        self.manifest(name)
        return self._files[name].components()

    def defaults(self) -> dict[str, AdapterDefaults]:
        """Adapter name -> how it is meant to be run, of those that say so."""
        return {name: said for name, manifest in tuple(self._manifests.items()) if (said := manifest.defaults) is not msgspec.UNSET}

    def size_bytes(self) -> int:
        """Memory that adapters and mixes take now, mapped files included; zeros that stand for slots they do not have are not theirs."""
        return self._cache.size_bytes()

    def metrics(self) -> StoreMetrics:
        """The figures of this moment."""
        return StoreMetrics(**vars(self._cache.counters), loaded_bytes=self._cache.size_bytes(), registered=len(self._manifests))

    def close(self) -> None:
        """Preload no more and let go of all adapters; those that are used again are read again."""
        self._ahead.shutdown(cancel_futures=True)
        self._cache.clear()

    def _register(self, name: str, file: AdapterFile) -> None:
        with self._lock:
            self._manifests[name] = file.manifest
            self._files[name] = file
            self._cache.register(name, partial(file.read, self._zeros))
            self._changes += 1
        _LOG.info("adapter %s: registered, rank %d", name, file.manifest.rank)

    def _register_shipped(self, name: str) -> None:
        file = open_shipped(self._bundle, name)
        check_parents(file.manifest, self._bundle)
        self._register(name, file)
