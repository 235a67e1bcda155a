"""From adapter names and weights to the buffers of one picture; the latest mix is kept, because making one takes long."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock

from quad.runtime.adapters.buffers import Buffers
from quad.runtime.adapters.store import AdapterStore


@dataclass(frozen=True)
class Adapted:
    """What is bound for a picture.

    Args:
        weights: adapter name -> weight.
        keep_as: the name under which bindings are kept ready; None for a mix.
        notes: on what of a mix was lost.
    """

    weights: Mapping[str, float]
    buffers: Buffers
    keep_as: str | None
    notes: tuple[str, ...] = ()


class Mixer:
    """Buffers of weighted adapters, for several threads."""

    def __init__(self, store: AdapterStore) -> None:
        self._store = store
        self._lock = Lock()
        self._latest: tuple[int, Adapted] | None = None  # and the store's count of changes before it was made

    def adapted(self, weights: Mapping[str, float]) -> Adapted:
        """Raises:
        UsageError: no adapter has that name. CompatibilityError: their ranks together exceed a slot's by too much.
        """
        changes = self._store.changes
        with self._lock:
            latest = self._latest
        if latest is not None and latest[0] == changes and latest[1].weights == weights:
            return latest[1]
        buffers, notes = self._store.mix(list(weights), list(weights.values()))
        # An adapter as it is, and the base, come as the same buffers again.
        if list(weights.values()) in ([], [1.0]):
            return Adapted(dict(weights), buffers, "".join(weights), notes)
        mixed = Adapted(dict(weights), buffers, None, notes)
        with self._lock:
            if changes == self._store.changes:  # else a part may have been replaced meanwhile
                self._latest = (changes, mixed)
        return mixed

    def forget(self, name: str) -> None:
        """Let go of what was mixed of an adapter that is gone, or another one now."""
        with self._lock:
            if self._latest is not None and name in self._latest[1].weights:
                self._latest = None
