"""The half of a pipeline that is about adapters: which there are, which are active, and what of them the graphs are bound to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from quad.core.manifest import AdapterManifest, TaskSpec
from quad.runtime.adapters.mixer import Adapted, Mixer
from quad.runtime.adapters.store import AdapterStore, StoreMetrics
from quad.runtime.adapters.weighted_sum import weights_of
from quad.runtime.bundle import Bundle
from quad.runtime.engines.graph import Graph
from quad.runtime.request import Request, Resolved, resolve


class AdaptedGraphs:
    """The graphs of a bundle and the adapters that go into them. Names follow diffusers; `QuadPipeline` makes pictures of it.

    Until `set_adapters` or `disable_lora` is called, each call uses its task's own adapter; after that, what they set.
    """

    def __init__(self, bundle: Bundle, graphs: Mapping[str, Graph], adapter_budget_bytes: int | None = None) -> None:
        """Bound to the base."""
        self.bundle = bundle
        self._graphs = graphs
        self._store = AdapterStore(bundle, adapter_budget_bytes)
        self._mixer = Mixer(self._store)
        self._chosen: dict[str, float] | None = None
        self._bound: dict[str, float] = {}
        self._use({})

    @property
    def tasks(self) -> dict[str, TaskSpec]:
        """The tasks this pipeline can do now."""
        return self._store.tasks()

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names that `set_adapters` takes."""
        return self._store.names

    def adapter_manifest(self, name: str) -> AdapterManifest:
        """What an adapter says of itself.

        Raises:
            UsageError: no adapter has that name.
        """
        return self._store.manifest(name)

    def adapter_metrics(self) -> StoreMetrics:
        """What its adapters hold of memory, and how they came there."""
        return self._store.metrics()

    def get_active_adapters(self) -> list[str]:
        """Adapters bound at this moment; empty for the base."""
        return list(self._bound)

    def set_adapters(self, adapter_names: str | Sequence[str], weights: float | Sequence[float] | None = None) -> None:
        """Use these adapters from now on; several are added on the integer lattice.

        Args:
            adapter_names: one name or several.
            weights: one for all, or one each; 1 where not given.

        Raises:
            UsageError: an unknown name, or a wrong weight.
            CompatibilityError: their ranks together exceed a slot's.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        wanted = weights_of(names, weights)
        self._use(wanted)
        self._chosen = wanted

    def disable_lora(self) -> None:
        """Use the base from now on: zero buffers, its output bit for bit."""
        self._use({})
        self._chosen = {}

    def load_lora_weights(self, path: str | Path, adapter_name: str | None = None) -> str:
        """Admit a pack or an adapter directory; `set_adapters` makes it active.

        Returns:
            The name it was given.

        Raises:
            CompatibilityError: packed for another bundle. VerificationError: changed, or no adapter.
        """
        name = self.admit(path, adapter_name)
        if name in self._bound:
            self._use(dict(self._bound))
        return name

    def admit(self, path: str | Path, adapter_name: str | None = None, verify: bool = True) -> str:
        """As `load_lora_weights`, but pictures that are prepared or on their way keep the adapter that they began with.

        Args:
            verify: hash it now; False for when it is first used.
        """
        name = self._store.load(path, adapter_name, verify)
        self._forget(name)
        return name

    def unload(self, adapter_name: str | None = None) -> None:
        """Forget an adapter, or all of them; the base rules where one of them was active.

        Raises:
            UsageError: an unknown name.
        """
        names = self._store.names if adapter_name is None else (adapter_name,)
        for name in names:
            self.dismiss(name)
        if self._chosen is not None and self._chosen.keys() & set(names):
            self._chosen = {}
        if self._bound.keys() & set(names):
            self._use({})

    def dismiss(self, name: str) -> None:
        """As `unload`, but pictures that are prepared or on their way keep the adapter that they began with."""
        self._store.drop(name)
        self._forget(name)

    def resolve(self, request: Request) -> Resolved:
        """Which task and which adapters a request means; what of its call is wrong is told here, before any work.

        Raises:
            UsageError: an unknown task or adapter, or a number out of its range.
        """
        resolved = resolve(request, self.tasks, self.bundle.manifest.schedule)
        for name in resolved.weights:
            self._store.manifest(name)
        return resolved

    def pinned(self, names: Sequence[str]) -> AbstractContextManager[None]:
        """While inside, these adapters stay in memory."""
        return self._store.pinned(names)

    def preload(self, name: str) -> None:
        """Read an adapter on another thread, so that it is there when it is needed.

        Raises:
            UsageError: no adapter has that name. What is wrong with its file is told when it is used.
        """
        self._store.preload(name)

    def _adapted(self, request: Request) -> tuple[Resolved, Adapted]:
        """What a request means, and its buffers: of the same adapters, whatever is installed meanwhile.

        Raises:
            UsageError: as `resolve`. CompatibilityError: the adapters' ranks together exceed a slot's.
        """
        while True:
            changes = self._store.changes
            resolved = self.resolve(request)
            adapted = self._mixer.adapted(resolved.weights)
            if changes == self._store.changes:
                return resolved, adapted

    def _use(self, weights: Mapping[str, float]) -> None:
        adapted = self._mixer.adapted(weights)
        for graph in self._graphs.values():
            graph.bind(adapted.buffers, adapted.keep_as)
        self._bound = dict(weights)

    def _forget(self, name: str) -> None:
        self._mixer.forget(name)
        for graph in self._graphs.values():
            graph.forget(name)
