"""Connections of callers, and of strangers who have shown no token: counted apart, so that no number of strangers keeps a caller out."""

from __future__ import annotations

import logging
import resource
from typing import Protocol

from quad.serve.connections.rare_warning import RareWarning
from quad.serve.limits import Limits

_LOG = logging.getLogger(__name__)

SPARE_DESCRIPTORS = 16  # for files, and decoders' processes


class Connection(Protocol):
    """One connection, as far as its place is concerned."""

    @property
    def is_idle(self) -> bool:
        """No call of it is being read or answered."""
        ...

    @property
    def descriptor(self) -> int: ...

    def abort(self) -> None:
        """Close it now."""
        ...


class Places:
    """The connections of one server. Where there are too many, the one that has been idle longest goes, not the one that comes."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._callers: dict[Connection, None] = {}
        self._strangers: dict[Connection, None] = {}
        self._warning = RareWarning(_LOG)
        self.strangers_closed = 0

    @property
    def open(self) -> dict[str, float]:
        """How many there are of each kind."""
        return {"callers": len(self._callers), "strangers": len(self._strangers)}

    def enter(self, connection: Connection) -> None:
        """A new connection, which has shown no token."""
        self._strangers[connection] = None
        if len(self._strangers) > self._limits.max_strangers:
            self._close(next(iter(self._strangers)), "too many have shown no token")
        self._spare_descriptors(connection)

    def is_stranger(self, connection: Connection) -> bool:
        return connection in self._strangers

    def admit(self, connection: Connection) -> None:
        """It may call. One that gets no place is closed."""
        self._strangers.pop(connection, None)
        self._callers[connection] = None
        if len(self._callers) > self._limits.max_connections:
            self._close(self._oldest_idle(connection) or connection, "too many are open")

    def leave(self, connection: Connection) -> None:
        self._strangers.pop(connection, None)
        self._callers.pop(connection, None)

    def _spare_descriptors(self, connection: Connection) -> None:
        """Few are left when a new one has a high number: the system gives the lowest that is free."""
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if soft == resource.RLIM_INFINITY or connection.descriptor < soft - SPARE_DESCRIPTORS:
            return
        idle = self._oldest_idle(connection)
        if idle is not None:
            self._close(idle, "few files may be open")

    def _oldest_idle(self, but: Connection) -> Connection | None:
        everybody = (*self._strangers, *self._callers)
        return next((connection for connection in everybody if connection.is_idle and connection is not but), None)

    def _close(self, connection: Connection, why: str) -> None:
        self._warning("a connection closed, %s", why)
        self.strangers_closed += connection in self._strangers
        self.leave(connection)
        connection.abort()
