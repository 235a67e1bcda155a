"""One repository on two machines that publish as chance has it, devices that fetch between, and what must not be lost.

Each machine signs on a copy of its own and uploads when it likes, as rsync does: file by file, the timestamp last, nothing deleted. It may
overwrite what the other one has uploaded since; that one has to be told when it signs the next time.
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from quad.core.errors import QuadError, RefusedError, VerificationError
from quad.core.storage.install_pointers import read_installed
from quad.delivery.device.trust import read_trust
from quad.delivery.offer import read_catalogue
from quad.delivery.publisher.keys import Keys
from quad.delivery.publisher.repository import Repository
from quad.delivery.publisher.signed import read_state
from quad.delivery.publisher.working_copy import ServedComparison
from tests.delivery.simulator import PASSWORD, TERMS, World, make_pack

STEPS, DEVICES = 16, 2
_ROUNDS = 8


@dataclass
class Machine:
    """One copy of the repository; `keys` of its own where it has not all of them."""

    folder: Path
    repository: Repository
    refreshes_alone: bool = False

    def content(self) -> tuple[set[str], set[str]]:
        """Digests of packs on offer, and of revoked ones."""
        return content_of(self.folder)


@dataclass
class History:
    """What happened, and what was wrong in the end."""

    events: Counter[str] = field(default_factory=Counter)
    added: set[str] = field(default_factory=set)
    revoked: set[str] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)


def content_of(folder: Path) -> tuple[set[str], set[str]]:
    """Digests of packs on offer, and of revoked ones, in one copy."""
    catalogue = read_catalogue(read_state(folder).targets)
    offered = {offer.sha256 for offers in catalogue.offers.values() for offer in offers}
    return offered, {entry.sha256 for entry in catalogue.revoked}


def lacks(one: tuple[set[str], set[str]], other: tuple[set[str], set[str]]) -> bool:
    """Whether one content has not everything of another one."""
    return bool(other[1] - one[1] or other[0] - one[0] - one[1])


class Histories:
    """Histories that all begin alike: one pack on offer, which each device runs."""

    def __init__(self, home: Path) -> None:
        self._home, self._first = home, home / "first"
        self._first.mkdir(parents=True)
        world = World(self._first)
        world.add(1)
        world.install()

    def run(self, seed: int) -> History:
        """One history, told by its seed."""
        home = self._home / f"history{seed}"
        shutil.copytree(self._first, home)
        try:
            return _Run(home, random.Random(seed)).history
        finally:
            shutil.rmtree(home)


class _Run:
    def __init__(self, home: Path, chance: random.Random) -> None:
        self._home, self._chance, self.history = home, chance, History()
        self._world = World.__new__(World)
        self._world.home, self._world.server, self._world.root = home, home / "server", home / "repo/metadata/1.root.json"
        self._world.parents, self._world.changes = {"slots": "5" * 64, "profile": "9" * 64}, []
        self._seeds = iter(range(2, 1000))
        self._machines = [self._machine("repo"), self._machine("second", chance.random() < 0.25)]
        self._stores = [Path(shutil.copytree(home / "store", home / f"store{number}")) for number in range(DEVICES)]
        offered, _ = content_of(home / "repo")
        self.history.added |= offered
        for _ in range(STEPS):
            self._step()
        self._settle()
        self._judge()

    def _machine(self, name: str, refreshes_alone: bool = False) -> Machine:
        folder, keys = self._home / name, self._home / "keys"
        if not folder.exists():
            shutil.copytree(self._home / "repo", folder)
        if refreshes_alone:
            keys = Path(shutil.copytree(keys, self._home / "online", ignore=shutil.ignore_patterns("targets-*", "root-*")))
        comparison = ServedComparison(url=str(self._home / "server"))
        return Machine(folder, Repository(folder, Keys(keys, PASSWORD), comparison), refreshes_alone)

    def _step(self) -> None:
        machine = self._chance.choice(self._machines)
        works: list[Callable[[Machine], None]] = [self._refresh, self._upload]
        if not machine.refreshes_alone:
            works += [self._add, self._add, self._revoke]
        if self._chance.random() < 0.35:
            self._fetch(self._chance.choice(self._stores))
        self._signing(machine, self._chance.choice(works))
        if self._chance.random() < 0.6:
            self._upload(machine)

    def _signing(self, machine: Machine, work: Callable[[Machine], None]) -> None:
        """Sign, and say whether a conflict was told exactly where there is one."""
        ours, theirs = machine.content(), content_of(self._home / "server")
        conflict = lacks(ours, theirs) and lacks(theirs, ours) and work != self._upload
        try:
            work(machine)
        except VerificationError as error:
            if "revoked" not in str(error):  # by the other one, as this one hears now
                self.history.wrong.append(str(error))
        except RefusedError as error:
            self.history.events["conflicts told"] += 1
            if not conflict or "quad publish repair" not in str(error):
                self.history.wrong.append(f"refused where nothing is lost: {error}")
            if not machine.refreshes_alone and self._chance.random() < 0.7:
                machine.repository.repair()
                self.history.events["repairs"] += 1
        else:
            if conflict:
                self.history.wrong.append("a conflict was not told")

    def _add(self, machine: Machine) -> None:
        seed = next(self._seeds)
        name = self._chance.choice(["ink", "sky", "sea"])
        pack = make_pack(self._home / f"p{seed}.qpack", seed, name)
        (offer,) = machine.repository.add([pack], TERMS)
        self.history.added.add(offer.sha256)
        self.history.events["adds"] += 1

    def _revoke(self, machine: Machine) -> None:
        offers = [offer for versions in read_catalogue(read_state(machine.folder).targets).offers.values() for offer in versions]
        if not offers:
            return self._refresh(machine)
        chosen = self._chance.choice(offers)
        (entry,) = machine.repository.revoke(chosen.label)
        self.history.revoked.add(entry.sha256)
        self.history.events["revocations"] += 1
        return None

    def _refresh(self, machine: Machine) -> None:
        machine.repository.refresh()
        self.history.events["refreshes"] += 1

    def _upload(self, machine: Machine) -> None:
        if lacks(machine.content(), content_of(self._home / "server")):
            self.history.events["uploads that overwrite"] += 1
        server = self._home / "server"
        for part in ("targets", "metadata"):
            shutil.copytree(machine.folder / part, server / part, dirs_exist_ok=True, ignore=shutil.ignore_patterns("timestamp.json"))
        if self._chance.random() < 0.3:
            self._fetch(self._stores[0])
        shutil.copy(machine.folder / "metadata/timestamp.json", server / "metadata/timestamp.json")

    def _fetch(self, store: Path) -> None:
        """A device asks; whatever it is told, it forgets no revocation."""
        self._world.store = store
        device = self._world.device()
        before = _known_revocations(store)
        try:
            device.fetch()
            self.history.events["fetches"] += 1
        except QuadError:
            self.history.events["fetches refused"] += 1
        if not before <= _known_revocations(store):
            self.history.wrong.append("a device has forgotten a revocation")

    def _settle(self) -> None:
        """Each machine does its daily work until nothing changes."""
        for _ in range(_ROUNDS):
            before = content_of(self._home / "server")
            for machine in self._machines:
                try:
                    machine.repository.refresh()
                except RefusedError:
                    if machine.refreshes_alone:
                        continue
                    machine.repository.repair()
                self._upload(machine)
            if before == content_of(self._home / "server") == self._machines[0].content() == self._machines[1].content():
                return

    def _judge(self) -> None:
        offered, revoked = content_of(self._home / "server")
        if self.history.revoked - revoked:
            self.history.wrong.append("a revocation is lost")
        if self.history.added - offered - revoked:
            self.history.wrong.append("an add is lost")
        for store in self._stores:
            self._world.store = store
            device = self._world.device()
            try:
                device.fetch()
            except QuadError as error:
                self.history.wrong.append(f"a device does not recover: {error}")
                continue
            if _known_revocations(store) != revoked:
                self.history.wrong.append("a device does not know a revocation")
            if {path.name.split(".")[0] for path in read_installed(store).values()} & revoked:
                self.history.wrong.append("a revoked pack runs")
        served = {path.name.split(".")[0] for path in (self._home / "server/targets").rglob("*.qpack")}
        if offered - served:
            self.history.wrong.append("the file of a pack on offer is not there")


def _known_revocations(store: Path) -> set[str]:
    trust = read_trust(store)
    return set() if trust is None else {entry.sha256 for entry in trust.catalogue().revoked}
