"""The adapters of a pipeline: which there are, which are active, and the switch from one to another."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any

from quad.core.errors import UsageError, mismatch
from quad.core.extra_graphs import SHALLOW_UNET
from quad.core.picture_size import component_of
from quad.core.slots import UNET
from quad.runtime.adapter_defaults import Presets, merged_defaults
from quad.runtime.adapters.block_weights import Weight, adapter_weights
from quad.runtime.adapters.buffers import AdapterMix
from quad.runtime.adapters.store import AdapterStore
from quad.runtime.bundle import Bundle
from quad.runtime.engines.graph import Graph
from quad.runtime.preview import require_tiny_decoder
from quad.runtime.request import Request, Resolved, choose_size, resolve

_LOG = logging.getLogger(__name__)


class AdapterSwitch:
    """Adapters on their way into the graphs of a bundle.

    Each graph holds the mix that it is bound to; this holds what is to be bound to them when nothing else is asked for. Until
    `set_adapters` or `disable_lora` is called, each call uses its task's own adapter; after that, what they set.

    Args:
        chosen: adapter name -> weight, as set; None where nothing was.
    """

    def __init__(self, bundle: Bundle, graphs: Mapping[str, Graph], adapter_budget_bytes: int | None = None) -> None:
        """Bound to the base."""
        self.store = AdapterStore(bundle, adapter_budget_bytes)
        self.chosen: dict[str, Weight] | None = None
        self._bundle, self._graphs = bundle, graphs
        self._lock = Lock()  # guards the latest mix, which is kept because making one takes long
        self._latest: tuple[int, AdapterMix] | None = None  # and the store's count of changes before it was made
        self._bind({})

    @property
    def active(self) -> Mapping[str, Weight]:
        """Adapter name -> weight, as the U-Net was bound last, of whatever size; empty for the base."""
        unets = [graph for name, graph in self._graphs.items() if component_of(name) == UNET]
        mix = max(unets, key=lambda graph: graph.bound).mix
        return {} if mix is None else mix.weights

    def set_adapters(self, names: Sequence[str], weights: Any) -> None:
        """See `QuadPipeline.set_adapters`."""
        chosen = adapter_weights(names, weights)
        self._bind(chosen)
        self.chosen = chosen

    def disable(self) -> None:
        """See `QuadPipeline.disable_lora`."""
        self._bind({})
        self.chosen = {}

    def load(self, path: str | Path, name: str | None = None) -> str:
        """Register an adapter and, where one of its name is active, bind it in its place. See `QuadPipeline.load_lora_weights`."""
        name = self.register(path, name)
        if name in self.active:
            self._bind(self.active)
        return name

    def unload(self, name: str | None = None) -> None:
        """See `QuadPipeline.unload`."""
        names = self.store.names if name is None else (name,)
        for each in names:
            self.unregister(each)
        if self.chosen is not None and self.chosen.keys() & set(names):
            self.chosen = {}
        if self.active.keys() & set(names):
            self._bind({})

    def register(self, path: str | Path, name: str | None = None, verify: bool = True, mapped: bool = False) -> str:
        """As `load`, but pictures that are prepared or on their way keep the adapter that they began with.

        Args:
            verify: hash it now; False for when it is first used.
            mapped: it is the device's own, to which nobody writes, and may be mapped.

        Returns:
            What it is called.

        Raises:
            CompatibilityError: packed for another bundle. VerificationError: changed, or no adapter.
        """
        name = self.store.register(path, name, verify, mapped)
        self._drop_latest(name)
        return name

    def unregister(self, name: str) -> None:
        """As `unload`, but pictures that are prepared or on their way keep the adapter that they began with."""
        self.store.unregister(name)
        self._drop_latest(name)

    def resolve(self, request: Request) -> Resolved:
        """Task and adapters that a request means; what of its call is wrong is told here, before any work.

        Raises:
            UsageError: an unknown task or adapter, a size that there is no graph for, or a number out of its range.
        """
        if not isinstance(request, Request):
            raise UsageError(mismatch("request", "a Request", repr(request), "make one: Request(prompt=...)"))
        manifest = self._bundle.manifest
        presets = Presets(self.store.defaults(), manifest.samplers or {}, merged_defaults(manifest))
        size = choose_size(manifest.picture_sizes, request.width, request.height)
        resolved = replace(resolve(request, self.store.tasks(), manifest.schedule, presets), size=size)
        if resolved.reuse > 1 and SHALLOW_UNET not in manifest.components:
            raise UsageError(
                mismatch("reuse", "1, or a bundle of quad build --reuse", resolved.reuse, "build with --reuse, or leave it out")
            )
        if resolved.tiny_decoder:
            require_tiny_decoder(manifest)
        for name in resolved.weights:
            self.store.manifest(name)
        return resolved

    def resolve_mix(self, request: Request) -> tuple[Resolved, AdapterMix]:
        """A request's meaning and its buffers: of the same adapters, whatever is registered meanwhile.

        Raises:
            UsageError: as `resolve`. CompatibilityError: the adapters' ranks together exceed a slot's.
        """
        while True:
            changes = self.store.changes
            resolved = self.resolve(request)
            mix = self._mix(resolved.weights)
            if changes == self.store.changes:
                return resolved, mix

    def pinned(self, names: Sequence[str]) -> AbstractContextManager[None]:
        """While inside, these adapters stay in memory."""
        return self.store.pinned(names)

    def preload(self, name: str) -> None:
        """Read an adapter on another thread, so that it is there when it is needed.

        Raises:
            UsageError: no adapter has that name. What is wrong with its file is told when it is used.
        """
        self.store.preload(name)

    def _bind(self, weights: Mapping[str, Weight]) -> None:
        """Bind all graphs to these adapters, now."""
        mix = self._mix(weights)
        for graph in self._graphs.values():
            graph.bind(mix)
        _LOG.debug("adapters: bound to %s", dict(weights) or "the base")

    def _mix(self, weights: Mapping[str, Weight]) -> AdapterMix:
        """Raises:
        UsageError: no adapter has that name. CompatibilityError: their ranks together exceed a slot's by too much.
        """
        changes = self.store.changes
        with self._lock:
            latest = self._latest
        if latest is not None and latest[0] == changes and latest[1].weights == weights:
            return latest[1]
        buffers, notes = self.store.mix(list(weights), list(weights.values()))
        mix = AdapterMix(weights=dict(weights), buffers=buffers, notes=notes, group=self.store.group_of(weights))
        # An adapter as it is, and the base, come as the same buffers again.
        if list(weights.values()) not in ([], [1.0]):
            with self._lock:
                if changes == self.store.changes:  # else a part may have been replaced meanwhile
                    self._latest = (changes, mix)
        return mix

    def _drop_latest(self, name: str) -> None:
        """Let go of what was mixed of an adapter that is gone, or another one now."""
        with self._lock:
            if self._latest is not None and name in self._latest[1].weights:
                self._latest = None
