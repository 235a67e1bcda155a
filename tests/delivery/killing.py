"""Kills installs, updates, rollbacks and publishes at any step, and looks what is left. Run as a process of its own, so that it can fork.

A step is a line of quad's own code, or a call that audit hooks see (open, rename, unlink, mkdir, ...). A child of this process does the
work and kills itself with SIGKILL at one step; or its parent does it at a moment that nobody chose.

    python -m tests.delivery.killing HOME OPERATION POINTS SEED

prints one JSON object: steps of the whole operation, points tried, how often the old and the new state was found, and what was wrong.
"""

from __future__ import annotations

import json
import os
import random
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from quad.core.digests import file_digest
from quad.core.storage.install_pointers import read_installed, read_pointers
from quad.delivery.device.device import Device
from quad.delivery.device.events import Access
from quad.delivery.device.fit import Platform
from quad.delivery.publisher.keys import Keys
from quad.delivery.publisher.repository import Repository
from quad.delivery.publisher.terms import PublishTerms

PASSWORD = b"a password of tests"
_OURS = (os.sep + os.path.join("quad", "delivery") + os.sep, os.sep + os.path.join("quad", "core") + os.sep)
TIMED = 8  # one point in so many is left to chance
TRIES = 8


class Steps:
    """Counts steps, and kills its own process at one of them; -1 at none."""

    def __init__(self, last: int) -> None:
        self.count, self._last = 0, last

    def begin(self) -> None:
        sys.addaudithook(self._audit)
        sys.settrace(self._call)

    def _step(self) -> None:
        self.count += 1
        if self.count == self._last:
            os.kill(os.getpid(), signal.SIGKILL)

    def _audit(self, event: str, _: tuple[Any, ...]) -> None:
        if event == "open" or event.startswith(("os.", "shutil.")):
            self._step()

    def _call(self, frame: FrameType, event: str, _: Any) -> Any:
        return self._line if any(part in frame.f_code.co_filename for part in _OURS) else None

    def _line(self, frame: FrameType, event: str, _: Any) -> Any:
        self._step()
        return self._line


def nothing(_: Path) -> None:
    """A smoke run that finds nothing."""


def device(home: Path, store: Path, server: Path | None = None) -> Device:
    """The device of a world, on a store of its own."""
    parents = json.loads((home / "parents.json").read_text())
    access = Access(url=str(server or home / "server"), root=(home / "repo/metadata/1.root.json").read_bytes())
    return Device(store, Platform(bundle="phone", parents=parents, release="0.1.0", ram_bytes=10**9), access=access)


def _repository(home: Path, repo: Path) -> Repository:
    return Repository(repo, Keys(repo.parent / "keys", PASSWORD))


Work = Callable[[Path, Path], Any]
WORK: dict[str, Work] = {
    "install": lambda home, place: device(home, place / "store").install("ink:2", nothing),
    "update": lambda home, place: device(home, place / "store").install("ink:3", nothing),
    "rollback": lambda home, place: device(home, place / "store").rollback("ink", nothing),
    "add": lambda home, place: _repository(home, place / "repo").add([home / "new.qpack"], PublishTerms("0.1", "1")),
    "revoke": lambda home, place: _repository(home, place / "repo").revoke("ink:3"),
    "rotate": lambda home, place: _repository(home, place / "repo").rotate(["root", "targets", "timestamp"]),
}
PUBLISHING = ("add", "revoke", "rotate")


def in_child(work: Callable[[], Any], last: int, after_s: float | None) -> tuple[int, int]:
    """Do it in a child.

    Args:
        last: the step that kills it.
        after_s: seconds after which this process kills it, wherever it is.

    Returns:
        The signal that ended it, 0 for none, and the steps that it made when it came to its end.
    """
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        steps = Steps(last)
        try:
            if after_s is None:
                steps.begin()
            work()
            sys.settrace(None)
            os.write(writes, str(steps.count).encode())
        finally:
            os._exit(0)
    os.close(writes)
    with os.fdopen(reads) as pipe:
        if after_s is not None and not select.select([pipe], [], [], after_s)[0]:
            os.kill(child, signal.SIGKILL)
        told = pipe.read()
    _, status = os.waitpid(child, 0)
    return (os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0), int(told or -1)


class Timer:
    """Kills at moments that nobody chose, within what an operation lasts on a machine as busy as it is now.

    Args:
        lasts_s: seconds of a whole operation, as measured once; where others took the cores meanwhile it is far too long.
    """

    def __init__(self, rng: random.Random, lasts_s: float) -> None:
        self._rng, self._lasts_s = rng, lasts_s

    def kills(self, begin: Callable[[], None], work: Callable[[], Any]) -> bool:
        """Whether it struck: an operation that came to its end first says how long it lasts, and the next moment lies within that."""
        for _ in range(TRIES):
            begin()
            since = time.monotonic()
            if in_child(work, -1, self._rng.uniform(1e-4, self._lasts_s))[0] == signal.SIGKILL:
                return True
            self._lasts_s = min(self._lasts_s, time.monotonic() - since)
        return False


def state_of_store(home: Path, place: Path) -> str:
    """The version that runs, after the checks that hold at any moment and after the next start."""
    store = place / "store"
    before = _running(store)
    device(home, store).clean()
    assert _running(store) == before, "the next start changed what runs"
    named = {f"packs/{v.sha256}.qpack" for p in read_pointers(store).values() for v in (p.current, p.previous) if v}
    pointers = {f"installed/{name}.json" for name in read_pointers(store)}
    files = {path.relative_to(store).as_posix() for path in store.rglob("*") if not path.is_dir()} if store.is_dir() else set()
    waiting = {name for name in files if name.startswith(("fetched/", "partial/"))}
    strays = files - named - pointers - {"trust.json"} - waiting
    assert not strays, f"stray files: {sorted(strays)}"
    assert all(Path(name).stem in _offered(home) for name in waiting), f"waiting for nothing: {sorted(waiting)}"
    return before


def _running(store: Path) -> str:
    for path in read_installed(store).values():
        assert file_digest(path) == path.stem, "the pointer names a pack of other bytes"
    return ",".join(f"{name}:{pointer.current.version}" for name, pointer in read_pointers(store).items())


def _offered(home: Path) -> set[str]:
    return {path.name.split(".")[0] for path in (home / "server/targets").rglob("*.qpack")}


def state_of_repository(home: Path, place: Path) -> str:
    """What a device of the first root and one that knew the old state see: both the same, and every pack of it can be fetched."""
    seen = []
    for store in (place / "new", Path(shutil.copytree(home / "known", place / "known"))):
        found = device(home, store, place / "repo")
        found.fetch()
        listed = found.listing()
        for entry in listed:
            found.fetch([f"{entry.name}:{version}" for version in entry.offered])
        root = max(int(path.name.split(".")[0]) for path in (place / "repo/metadata").glob("*.root.json"))
        seen.append(f"{[sorted(entry.offered) for entry in listed]} root {root}")
    assert seen[0] == seen[1], f"a new device sees {seen[0]}, an old one {seen[1]}"
    return seen[0]


def committing_step(steps: int, is_new: Callable[[int], bool]) -> int:
    """The first step whose kill leaves the new state, by halving; the steps around it are where a half-written state would be."""
    old, new = 0, steps
    while new - old > 1:
        middle = (old + new) // 2
        old, new = (old, middle) if is_new(middle) else (middle, new)
    return new


class Killing:
    """One operation, killed at one point after another.

    Args:
        seed: of the moments of the timer.
    """

    def __init__(self, home: Path, operation: str, seed: int) -> None:
        self._home, self._operation = home, operation
        self._place, self._work = home / "place", WORK[operation]
        self._look = state_of_repository if operation in PUBLISHING else state_of_store
        self._begin()
        self._old = self._look(home, self._place)
        self._begin()
        killed, self.steps = in_child(self._do, -1, None)
        assert (killed, self.steps > 0) == (0, True), "the operation does not come to its end"
        self._new = self._look(home, self._place)
        self._begin()
        since = time.monotonic()
        in_child(self._do, -1, 1e3)
        self._timer = Timer(random.Random(f"moments {seed}"), time.monotonic() - since)
        self.kills, self.states, self.wrong = 0, {"old": 0, "new": 0}, list[str]()

    def _begin(self) -> None:
        shutil.rmtree(self._place, ignore_errors=True)
        shutil.copytree(self._home / "before" / self._operation, self._place)

    def _do(self) -> None:
        self._work(self._home, self._place)

    def at_step(self, step: int) -> bool:
        """Whether a kill at this step leaves the new state."""
        self._begin()
        self.kills += in_child(self._do, step, None)[0] == signal.SIGKILL
        return self._check(f"step {step} of {self.steps}")

    def at_moment(self) -> None:
        """Kill at a moment that nobody chose."""
        self.kills += self._timer.kills(self._begin, self._do)
        self._check("timer")

    def _check(self, point: str) -> bool:
        try:
            state = self._look(self._home, self._place)
            assert state in (self._old, self._new), f"{state} is neither {self._old} nor {self._new}"
            self.states["new" if state == self._new else "old"] += 1
            if self._operation in ("install", "update"):
                self._do()
                assert self._look(self._home, self._place) == self._new, "the next try did not bring it to its end"
        except Exception as error:
            self.wrong.append(f"{point}: {type(error).__name__} {error}")
            return False
        return state == self._new


def main(home: Path, operation: str, points: int, seed: int) -> dict[str, Any]:
    """Kill one operation around the step that commits it, and at points spread over all of it."""
    killing, rng = Killing(home, operation, seed), random.Random(seed)
    commit = committing_step(killing.steps, killing.at_step)
    for step in (commit - 2, commit - 1, commit + 1, killing.steps):
        killing.at_step(step)
    for index in range(points):
        if index % TIMED == 0:
            killing.at_moment()
        else:
            killing.at_step(rng.randint(1, killing.steps))
    tried = sum(killing.states.values()) + len(killing.wrong)
    return {"steps": killing.steps, "commit": commit, "points": tried, "kills": killing.kills, **killing.states, "wrong": killing.wrong}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
