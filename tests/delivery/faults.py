"""Faults of the disk at random moments of a device's and a publisher's work, and what must hold after each.

A fault is an error of one system call (or of all from there on), a SIGKILL, or modes that take the user's rights to directories and files
away while the work runs. A child process does the work; its parent looks what is left, gives the rights back and has the work done again.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quad.core.errors import QuadError
from quad.core.storage.install_pointers import read_pointers
from quad.delivery.publisher.repository import Repository
from tests.delivery.simulator import TERMS, World, make_pack, nothing

NUMBERS = (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS)
NOBODY = 65534
_MODES = (0o000, 0o111, 0o444, 0o555)
_CALLS = ("stat", "lstat", "fsync", "fchmod")


@dataclass
class Faults:
    """Faults so far.

    Args:
        told: the answer of the work, in a word.
        wrong: one line each.
    """

    points: int = 0
    told: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


class Bench:
    """A world, and copies of what each work begins with."""

    def __init__(self, home: Path) -> None:
        self.world, self.result = World(home), Faults()
        self._home = home
        (home / "store.none").mkdir()
        self.world.add(1)
        self.world.install()
        shutil.copytree(self.world.store, home / "store.one")
        self.world.add(2)
        self.world.install()
        shutil.copytree(self.world.store, home / "store.two")
        make_pack(home / "new.qpack", 7, "sky")
        shutil.copytree(home / "repo", home / "repo.before")
        world = self.world
        self._works: dict[str, tuple[str, Callable[[], object], tuple[int | None, ...]]] = {
            "install": ("store.none", lambda: world.install("ink:1"), (None, 1)),
            "update": ("store.one", world.install, (1, 2)),
            "rollback": ("store.two", lambda: world.device().rollback("ink", nothing), (2, 1)),
            "fetch": ("store.one", lambda: world.device().fetch(["ink"]), (1,)),
            "list": ("store.two", lambda: world.device().listing(), (2,)),
            "add": ("", lambda: Repository(home / "repo", world.keys).add([home / "new.qpack"], TERMS), ()),
            "refresh": ("", lambda: Repository(home / "repo", world.keys).refresh(), ()),
        }
        for name in self._works:  # also loads what is loaded late: a child without rights could not
            self._begin(name)
            self._works[name][1]()

    def run(self, seed: int) -> None:
        """One fault."""
        chance = random.Random(seed)
        name = chance.choice(list(self._works))
        store, _, allowed = self._works[name]
        self._begin(name)
        before = self._named_packs() if store else set()
        hidden = self._hide(chance) if chance.random() < 0.35 else []
        kill, at = not hidden and chance.random() < 0.3, 0 if hidden else chance.randrange(1, 100)
        said = self._child(name, at, None if kill else chance.choice(NUMBERS), chance.random() < 0.3, bool(hidden))
        for path, mode in reversed(hidden):
            path.chmod(mode)
        self.result.points += 1
        self.result.told[said.split(":")[0]] += 1
        where = f"seed {seed}, {name}, {'modes' if hidden else 'kill' if kill else 'errors'}: "
        if said.startswith("fault"):
            self.result.wrong.append(where + said)
        if store:
            self._judge_store(where, said, before, allowed)
        self._repeat(where, name, said)

    def _begin(self, name: str) -> None:
        store = self._works[name][0]
        place, source = (self.world.store, store) if store else (self._home / "repo", "repo.before")
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(self._home / source, place)

    def _hide(self, chance: random.Random) -> list[tuple[Path, int]]:
        """Take rights away; returns what had which."""
        if os.geteuid() == 0:
            for path in (self._home, *self._home.rglob("*")):
                os.chown(path, NOBODY, NOBODY)
        everything = sorted(path for top in (self.world.store, self._home / "repo") for path in (top, *top.rglob("*")))
        places = [path for path in everything if path.is_dir()] if chance.random() < 0.7 else everything
        hidden = [(path, path.stat().st_mode & 0o7777) for path in chance.sample(places, min(len(places), chance.choice((1, 1, 2))))]
        for path, _ in hidden:
            path.chmod(chance.choice(_MODES))
        return hidden

    def _child(self, name: str, at: int, number: int | None, from_there_on: bool, as_nobody: bool) -> str:
        """What the work said: `done`, `refused: ...`, `killed`, or `fault: ...` where it is no line for a user."""
        reader, writer = os.pipe()
        child = os.fork()
        if child:
            os.close(writer)
            with open(reader, encoding="utf-8") as stream:
                said = stream.read()
            os.waitpid(child, 0)
            return said or "killed"
        try:
            if as_nobody and os.geteuid() == 0:
                os.setgroups([])
                os.setresgid(NOBODY, NOBODY, NOBODY)
                os.setresuid(NOBODY, NOBODY, NOBODY)
            if at:
                _arm(str(self._home), at, number, from_there_on)
            said = _said(self._works[name][1])
        finally:
            sys.settrace(None)
            _Armed.at = 0
        os.write(writer, said.encode())
        os._exit(0)

    def _named_packs(self) -> set[str]:
        pointers = read_pointers(self.world.store).values()
        return {version.sha256 for pointer in pointers for version in (pointer.current, pointer.previous) if version}

    def _judge_store(self, where: str, said: str, before: set[str], allowed: tuple[int | None, ...]) -> None:
        """The old version runs or the new one, whole, and no pack that a pointer names is gone."""
        try:
            pointers = read_pointers(self.world.store)
            self.world.running()
        except QuadError as error:
            self.result.wrong.append(f"{where}{error}; it said {said}")
            return
        version = pointers["ink"].current.version if pointers else None
        if version not in allowed:
            self.result.wrong.append(f"{where}version {version} runs; it said {said}")
        if said == "done" and version != allowed[-1]:
            self.result.wrong.append(f"{where}it said done, version {version} runs")
        here = {path.stem for path in (self.world.store / "packs").glob("*.qpack")}
        if self._named_packs() - here or (version == allowed[0] and before - here):
            self.result.wrong.append(f"{where}a good pack is gone; it said {said}")
        if before and not (self.world.store / "trust.json").is_file():
            self.result.wrong.append(f"{where}the trust is gone; it said {said}")

    def _repeat(self, where: str, name: str, said: str) -> None:
        """The same again without a fault works, and devices take what is published."""
        again = _said(self._works[name][1])
        published = name == "add" and "on offer as" in again and (said == "killed" or "is published" in said or said == "done")
        if again != "done" and not published and not (name == "rollback" and said != "done"):
            self.result.wrong.append(f"{where}a repeat fails, {again}; it said {said}")
        strays = [path.name for top in (self.world.store, self._home / "repo") for path in top.rglob(".*") if path.name.endswith(".part")]
        if strays and name not in ("list", "rollback"):
            self.result.wrong.append(f"{where}left over: {strays}")
        if name in ("add", "refresh"):
            shutil.rmtree(self.world.store)
            shutil.copytree(self._home / "store.two", self.world.store)
            device = self.world.device()
            self.world.serve()
            if (heard := _said(device.fetch)) != "done":
                self.result.wrong.append(f"{where}a device refuses what is published, {heard}")


def _said(work: Callable[[], object]) -> str:
    try:
        work()
    except QuadError as error:
        return f"refused: {error}"
    except OSError as error:  # the command line makes a line of it where it names its file
        return f"refused: {error}" if error.filename is not None else f"fault: {error!r}"
    except BaseException as error:
        return f"fault: {error!r}"
    return "done"


class _Armed:
    at, count = 0, 0


def _arm(home: str, at: int, number: int | None, from_there_on: bool) -> None:
    """Let the system call of that number below a directory fail, or kill the process there."""
    _Armed.at = at

    def strike(place: Any) -> None:
        path = os.fsdecode(place) if isinstance(place, str | bytes | os.PathLike) else ""
        if not _Armed.at or not (isinstance(place, int) or path.startswith(home)):
            return
        _Armed.count += 1
        if _Armed.count == at or (from_there_on and number is not None and _Armed.count > at):
            if number is None:
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(number or 0, os.strerror(number or 0), path or None)

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" or event in ("os.listdir", "os.scandir", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"):
            strike(arguments[0])

    def striking(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(place: Any, *options: Any, **named: Any) -> Any:
            strike(place)
            return real(place, *options, **named)

        return call

    for name in _CALLS:
        setattr(os, name, striking(getattr(os, name)))
    sys.addaudithook(audit)
