"""Adapters on their way into the graphs of a pipeline: what was made ready once is bound again in a fraction of a millisecond."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from functools import partial

from quad.runtime.adapters.buffers import Buffers
from quad.runtime.engines.bound_session import Ready
from quad.runtime.engines.engine import SwitchSession


class Binder:
    """Binds whole adapters; those with a name are checked and wrapped once, for as long as their buffers live."""

    def __init__(self, sessions: Mapping[str, SwitchSession], slot_names: Mapping[str, Sequence[str]]) -> None:
        """Args:
        sessions: by component.
        slot_names: component -> its slot inputs.
        """
        self._sessions, self._slot_names = dict(sessions), dict(slot_names)
        self._kept: dict[str, tuple[weakref.ref[Buffers], dict[str, Ready]]] = {}
        self._bound: Buffers | None = None

    def bind(self, buffers: Buffers, name: str | None = None) -> None:
        """Make these buffers every graph's slot inputs. They are held until others are bound, so that a store knows them to be in use.

        Args:
            buffers: graph input name -> array; not to be written to any more.
            name: what to keep them ready under, None for a mix that is not worth keeping. Other buffers of that name take its place.

        Raises:
            BackendError: they do not fit; what was bound stays bound.
        """
        kept = self._kept.get(name) if name is not None else None
        ready = kept[1] if kept is not None and kept[0]() is buffers else self._prepare(buffers)
        for component, inputs in ready.items():
            self._sessions[component].bind(inputs)
        self._bound = buffers
        if name is not None:
            self._kept[name] = (weakref.ref(buffers, partial(_forget, weakref.ref(self), name)), ready)

    def forget(self, name: str) -> None:
        """Let go of the memory that is kept under a name, once nothing of it is bound."""
        self._kept.pop(name, None)

    def _outlived(self, name: str, buffers: weakref.ref[Buffers]) -> None:
        """Buffers are gone: what was made of them would keep their memory."""
        kept = self._kept.get(name)
        if kept is not None and kept[0] is buffers:
            self.forget(name)

    def _prepare(self, buffers: Buffers) -> dict[str, Ready]:
        return {
            component: self._sessions[component].prepare({name: buffers[name] for name in names})
            for component, names in self._slot_names.items()
        }


def _forget(binder: weakref.ref[Binder], name: str, buffers: weakref.ref[Buffers]) -> None:
    """A weak reference's last call; it knows the binder weakly, so that binders go when they are let go of."""
    if (found := binder()) is not None:
        found._outlived(name, buffers)
