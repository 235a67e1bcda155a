"""Whatever a server does: it is refused with its own line, what runs goes on to run, and an honest server is believed again."""

from __future__ import annotations

import copy
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from quad.core.errors import QuadError, RefusedError, VerificationError
from quad.delivery.device import device
from quad.delivery.source import Answer, DirectorySource
from quad.delivery.timeouts import Timeouts, metered
from tests.delivery.attacks import ATTACKS, Attack, fast_forward, mix_and_match
from tests.delivery.simulator import World, nothing


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_an_attack_is_refused_with_its_own_line_and_nothing_changes(world: World, attack: Attack) -> None:
    before = world.running()
    wish = attack.run(world)
    with pytest.raises(RefusedError, match=attack.says) as caught:
        world.install(wish)
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)
    assert world.running() == before
    world.device().clean()
    assert {name for name in world.files() if not name.startswith(("packs/", "installed/"))} <= {"trust.json", *_fetched(world)}


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_after_an_attack_an_honest_server_is_believed(world: World, attack: Attack) -> None:
    """But where the attacker held keys: then the publisher has to give the roles new ones, and that is enough."""
    wish = attack.run(world)
    with pytest.raises(RefusedError):
        world.install(wish)
    world.repository.rotate(["targets", "snapshot", "timestamp"])
    world.add(9)
    assert world.install() == int(world.device().listing()[0].installed or 0) >= 2
    assert world.running()["ink"] == (world.home / "pack9.qpack").read_bytes()


def _fetched(world: World) -> list[str]:
    return [name for name in world.files() if name.startswith("fetched/")]


def test_slow_data_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.add(2)
    before = world.running()
    now = [0.0]

    class Trickle:
        """A server that sends a byte a second, by a clock of its own."""

        name, redirects = "trickle", ()

        def open(self, path: str, start: int, most: int) -> Answer:
            whole = DirectorySource(world.server).open(path, start, most)
            return Answer(start, metered(self._bytes(whole.chunks) if path.endswith("qpack") else whole.chunks, Timeouts(), lambda: now[0]))

        def _bytes(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
            for byte in b"".join(chunks):
                now[0] += 1
                yield bytes([byte])

    monkeypatch.setattr(device, "open_source", lambda *_: Trickle())
    with pytest.raises(VerificationError, match=r"\.2\.qpack: expected data at a tolerable rate, found \d+ bytes in 20 s \(slow data\)"):
        world.install()
    assert world.running() == before


def test_a_leap_that_was_believed_ends_when_the_roles_get_new_keys(world: World) -> None:
    """Fast-forward by one who holds keys, within what a device takes: the honest publisher is refused until it rotates."""

    def leap(signed: Any) -> None:
        signed.version += 900_000

    world.forge("timestamp", leap)
    world.device().fetch()
    world.add(2)
    with pytest.raises(VerificationError, match=r"expected a version of at least 900002, found 3 \(rollback\)"):
        world.install()
    world.repository.rotate(["snapshot", "timestamp"])
    world.serve()
    assert world.install() == 2


def test_keys_that_were_rotated_away_sign_nothing_any_more(world: World) -> None:
    old = world.signers("timestamp")
    world.repository.rotate(["timestamp"])
    world.serve()
    world.device().fetch()

    def newer(signed: Any) -> None:
        signed.version += 1

    world.forge("timestamp", newer, old)
    with pytest.raises(VerificationError, match=r"found keys that the root does not name \(wrong keys\)"):
        world.install()


def test_a_new_root_stays_trusted_though_the_refresh_failed(world: World) -> None:
    """Else a server could show the new root, fail, and go back to the keys of before."""
    old = world.signers("timestamp")
    before = world.metadata("timestamp").read_bytes()
    world.repository.rotate(["timestamp"])
    world.serve()
    world.metadata("timestamp").write_bytes(before)
    with pytest.raises(VerificationError, match=r"\(wrong keys\)"):
        world.install()
    (world.server / "metadata/2.root.json").unlink()
    world.forge("timestamp", lambda signed: None, old)
    with pytest.raises(VerificationError, match=r"\(wrong keys\)"):
        world.install()


def test_a_new_device_is_not_fooled_either(new_device: Callable[[], World]) -> None:
    for attack in (fast_forward, mix_and_match):
        world = new_device()
        wish = attack(world)
        with pytest.raises(VerificationError):
            world.install(wish)
        assert world.running() == {}
        world.serve()
        world.install()


def test_another_publishers_root_is_not_this_ones(world: World, tmp_path: Path) -> None:
    other = World(tmp_path / "other")
    other.store = world.store
    with pytest.raises(Exception, match=r"--root: expected the root \w{8} of before, found another one"):
        other.device().install("ink", nothing)


def test_a_root_that_was_given_by_mistake_is_no_trap(world: World, tmp_path: Path) -> None:
    """Nothing was verified with it: the right one is taken afterwards."""
    other = World(tmp_path / "other")
    world.store, right, world.root = world.home / "new", world.root, other.root
    with pytest.raises(VerificationError, match=r"\(wrong keys\)"):
        world.install()
    assert not world.files()
    world.root = right
    assert world.install() == 1


def test_a_pack_under_another_name_is_refused_and_stays_where_it_runs(world: World) -> None:
    """Terms that lie about a pack that is here: it is not thrown away under the adapter that runs from it."""

    def lie(signed: Any) -> None:
        lent = copy.deepcopy(signed.targets["ink/1.qpack"])
        lent.custom.update(name="sky")
        signed.targets["sky/1.qpack"] = lent

    before = world.running()
    world.forge_targets(lie)
    with pytest.raises(VerificationError, match=r"sky:1 in .*: expected adapter sky, found 'ink'"):
        world.install("sky")
    assert world.running() == before


def test_a_byte_anywhere_that_is_another_is_refused_or_changes_nothing(world: World) -> None:
    """Every error is one of quad's own, with a line; a pack of other bytes never runs."""
    world.add(2)
    good = (world.home / "pack2.qpack").read_bytes()
    clean = Path(shutil.copytree(world.store, world.home / "clean"))
    honest = Path(shutil.copytree(world.server, world.home / "honest"))
    rng = random.Random(0)
    refused = 0
    for _ in range(60):
        for place, kept in ((world.store, clean), (world.server, honest)):
            shutil.rmtree(place)
            shutil.copytree(kept, place)
        path = rng.choice(sorted(path for path in world.server.rglob("*") if path.is_file()))
        data = bytearray(path.read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(data))
        before = world.running()
        try:
            world.install()
            assert world.running()["ink"] == good
        except QuadError:
            refused += 1
            assert world.running() == before
    assert refused > 10
