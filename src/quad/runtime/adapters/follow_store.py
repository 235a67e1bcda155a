"""Adapters that `quad install` puts into the device's store: taken up at the start, and while a server runs, without a restart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Lock

from quad.core.errors import InputError, QuadError, mismatch
from quad.core.storage.install_pointers import look_at_installed

Take = Callable[[Path, str], object]


class InstalledAdapters:
    """What of a store has been taken up. A pack that cannot be taken is told of once, and tried again when its pointer changes."""

    def __init__(self, store: Path, take: Take, drop: Callable[[str], None]) -> None:
        """Args:
        take: registers a pack under a name, replacing one of that name.
        drop: forgets a name.
        """
        self._store, self._take, self._drop = store, take, drop
        self._taken: dict[str, Path] = {}
        self._refused: dict[str, Path] = {}
        self._own = Lock()
        self._notes: dict[str, str] = {}

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._taken)

    @property
    def notes(self) -> tuple[str, ...]:
        """What could not be taken up, one line each."""
        return tuple(self._notes.values())

    def look(self) -> None:
        """Take up every pointer that has changed; what fails is noted. Reads the disk."""
        with self._own:
            try:
                found = look_at_installed(self._store)
            except (QuadError, OSError) as error:  # nothing is changed on the word of a store that cannot be read
                self._notes[""] = _line(error)
                return
            self._notes.pop("", None)
            for name in (self._taken.keys() | self._notes.keys()) - found.keys():
                self._forget(name)
            for name, what in found.items():
                self._follow(name, what)

    def install(self, name: str) -> None:
        """Take up the version that the store now points to.

        Raises:
            InputError: the store has no such adapter. RefusedError: it is damaged, or made for another bundle.
        """
        with self._own:
            found = look_at_installed(self._store)
            if name not in found:
                there = ", ".join(found) or "none"
                raise InputError(mismatch("installed adapter", f"one of {there}", repr(name), "install it first: quad install"))
            what = found[name]
            if isinstance(what, QuadError):
                raise what
            if self._taken.get(name) != what:
                self._admit(name, what)

    def _follow(self, name: str, what: Path | QuadError) -> None:
        if isinstance(what, QuadError):  # nothing is changed on the word of a damaged pointer
            self._refused.pop(name, None)
            self._notes[name] = str(what)
        elif what == self._taken.get(name):
            self._refused.pop(name, None)
            self._notes.pop(name, None)
        elif what != self._refused.get(name):
            self._try(name, what)

    def _try(self, name: str, path: Path) -> None:
        try:
            self._admit(name, path)
        except (QuadError, OSError) as error:
            self._refused[name], self._notes[name] = path, _line(error)

    def _admit(self, name: str, path: Path) -> None:
        self._take(path, name)
        self._taken[name] = path
        self._refused.pop(name, None)
        self._notes.pop(name, None)

    def _forget(self, name: str) -> None:
        self._refused.pop(name, None)
        self._notes.pop(name, None)
        if self._taken.pop(name, None) is None:
            return
        try:
            self._drop(name)
        except QuadError as error:
            self._notes[name] = str(error)


def _line(error: Exception) -> str:
    told = error if isinstance(error, QuadError) else InputError(mismatch("store", "one that can be read", str(error), "check its disk"))
    return str(told)
