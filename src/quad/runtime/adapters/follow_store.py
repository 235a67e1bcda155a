"""Adapters that `quad install` puts into the device's store: registered at the start, and while a server runs, without a restart."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Lock

from quad.core.errors import BackendError, InputError, QuadError, mismatch
from quad.core.storage.install_pointers import inspect_installed
from quad.core.storage.reading import reading_from

_LOG = logging.getLogger(__name__)

Register = Callable[[Path, str], object]


class InstalledAdapters:
    """The packs of a store that were registered. One that is refused is noted once, and tried again when its pointer changes.

    One that the system does not let be read is tried again each time.
    """

    def __init__(self, store: Path, register: Register, unregister: Callable[[str], None]) -> None:
        """Args:
        register: a pack under a name, replacing one of that name.
        unregister: a name.
        """
        self._store, self._register_pack, self._unregister_name = store, register, unregister
        self._registered: dict[str, Path] = {}
        self._refused: dict[str, Path] = {}
        self._lock = Lock()
        self._notes: dict[str, str] = {}

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._registered)

    @property
    def notes(self) -> tuple[str, ...]:
        """One line for each pack that could not be registered."""
        return tuple(self._notes.values())

    def open(self) -> None:
        """Register every pack that is installed, before anything runs; what is damaged is noted. Reads the disk.

        Raises:
            BackendError: the system does not let the store, or a pack of it, be read: older versions would run in its place.
        """
        with self._lock, reading_from(self._store):
            self._follow_all(inspect_installed(self._store), opening=True)

    def refresh(self) -> None:
        """Register every pack whose pointer has changed; what fails is noted. Reads the disk."""
        with self._lock:
            try:
                pointers = inspect_installed(self._store)
            except (QuadError, OSError) as error:  # nothing is changed on the word of a store that cannot be read
                self._notes[""] = _line(error)
                return
            self._follow_all(pointers)

    def register(self, name: str) -> None:
        """Register the version that the store now points to.

        Raises:
            InputError: the store has no such adapter. RefusedError: it is damaged, or made for another bundle.
        """
        with self._lock:
            pointers = inspect_installed(self._store)
            if name not in pointers:
                names = ", ".join(pointers) or "none"
                raise InputError(mismatch("installed adapter", f"one of {names}", repr(name), "install it first: quad install"))
            pointer = pointers[name]
            if isinstance(pointer, QuadError):
                raise pointer
            if self._registered.get(name) != pointer:
                self._register(name, pointer)

    def _follow_all(self, pointers: Mapping[str, Path | QuadError], opening: bool = False) -> None:
        self._notes.pop("", None)
        for name in (self._registered.keys() | self._notes.keys()) - pointers.keys():
            self._unregister(name)
        for name, pointer in pointers.items():
            self._follow(name, pointer, opening)

    def _follow(self, name: str, pointer: Path | QuadError, opening: bool) -> None:
        if isinstance(pointer, QuadError):  # nothing is changed on the word of a damaged pointer
            self._refused.pop(name, None)
            self._notes[name] = str(pointer)
        elif pointer == self._registered.get(name):
            self._refused.pop(name, None)
            self._notes.pop(name, None)
        elif pointer != self._refused.get(name):
            try:
                with reading_from(pointer):
                    self._register(name, pointer)
            except QuadError as error:
                unreadable = isinstance(error, BackendError) or isinstance(error.__cause__, OSError)
                if opening and unreadable:
                    raise BackendError(str(error)) from error
                if not unreadable:  # else it may be sound, and is tried again
                    self._refused[name] = pointer
                if self._notes.get(name) != str(error):
                    _LOG.warning("installed adapter %s: refused, %s", name, error)
                self._notes[name] = str(error)

    def _register(self, name: str, path: Path) -> None:
        self._register_pack(path, name)
        self._registered[name] = path
        self._refused.pop(name, None)
        self._notes.pop(name, None)

    def _unregister(self, name: str) -> None:
        self._refused.pop(name, None)
        self._notes.pop(name, None)
        if self._registered.pop(name, None) is None:
            return
        try:
            self._unregister_name(name)
        except QuadError as error:
            self._notes[name] = str(error)


def _line(error: Exception) -> str:
    if not isinstance(error, QuadError):
        error = InputError(mismatch("store", "one that can be read", str(error), "check its disk"))
    return str(error)
