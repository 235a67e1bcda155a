"""One repository on two machines: nothing that either has published is lost, and a conflict is told before anything is signed."""

from __future__ import annotations

import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from quad.core.errors import BackendError, RefusedError, UsageError, VerificationError
from quad.delivery.publisher import repository as repository_module
from quad.delivery.publisher import signed, working_copy
from quad.delivery.publisher.repository import Repository
from quad.delivery.publisher.signed import read_state
from quad.delivery.publisher.working_copy import ServedComparison
from tests.delivery.simulator import TERMS, World, expire, make_pack
from tests.delivery.two_publishers import Histories, content_of


class Two:
    """A world whose repository lies on two machines; `notes` is what both were told."""

    def __init__(self, world: World) -> None:
        self.world, self.notes = world, list[str]()
        shutil.copytree(world.home / "repo", world.home / "second")
        self.first, self.second = self.machine("repo"), self.machine("second")

    def machine(self, name: str, wanted: bool = True) -> Repository:
        comparison = ServedComparison(url=str(self.world.server), wanted=wanted, on_note=self.notes.append)
        return Repository(self.world.home / name, self.world.keys, comparison)

    def upload(self, name: str) -> None:
        """As rsync without `--delete`."""
        for part in ("targets", "metadata"):
            shutil.copytree(self.world.home / name / part, self.world.server / part, dirs_exist_ok=True)

    def pack(self, seed: int, name: str) -> Path:
        return make_pack(self.world.home / f"{name}{seed}.qpack", seed, name)

    def labels(self) -> set[str]:
        """The packs that a device is offered."""
        self.world.device().fetch()
        return {f"{entry.name}:{version}" for entry in self.world.device().listing() for version in entry.offered}


@pytest.fixture
def two(world: World) -> Two:
    return Two(world)


def test_histories_of_two_machines_lose_nothing_and_tell_every_conflict(tmp_path: Path) -> None:
    """`python -m benchmarks.two_publishers` runs 500 of them."""
    histories = Histories(tmp_path / "home")
    results = [histories.run(seed) for seed in (6, 7, 9)]
    assert [result.wrong for result in results] == [[]] * len(results)
    assert sum(result.events["conflicts told"] for result in results) > 0


def test_a_machine_that_is_behind_takes_over_what_is_served_and_goes_on_from_it(two: Two) -> None:
    for _ in range(3):
        two.second.refresh()
    two.upload("second")
    two.world.device().fetch()
    two.first.revoke("ink:1", "it is harmful")
    two.upload("repo")
    two.world.device().fetch()
    assert two.world.running() == {}
    two.second.refresh()
    assert any("taken over from" in note and "the revocation of ink:1" in note for note in two.notes)
    two.upload("second")
    two.world.device().fetch()
    assert content_of(two.world.server) == content_of(two.world.home / "repo") == content_of(two.world.home / "second")


def test_two_adds_from_one_state_are_a_conflict_with_a_way_out(two: Two) -> None:
    two.first.add([two.pack(11, "alpha"), two.pack(13, "ink")], TERMS)
    two.second.add([two.pack(12, "beta"), two.pack(14, "ink")], TERMS)
    two.upload("repo")
    assert two.labels() == {"ink:1", "ink:2", "alpha:1"}
    before = content_of(two.world.home / "second")
    says = r"found alpha:1, ink:2, which this copy lacks; it lacks beta:1, ink:2 of this copy; nothing was signed, .* quad publish repair"
    with pytest.raises(RefusedError, match=says) as caught:
        two.second.refresh()
    assert caught.value.exit_code == 3
    assert content_of(two.world.home / "second") == before
    repaired = two.second.repair()
    assert (set(repaired.joined), repaired.renumbered) == ({"alpha:1", "ink:2"}, {"ink:2": "ink:3"})
    two.upload("second")
    assert two.labels() == {"ink:1", "ink:2", "ink:3", "alpha:1", "beta:1"}
    assert two.world.install() == 3
    two.first.refresh()
    assert two.first.repair().signed == ()


def test_a_device_that_has_seen_the_other_half_under_the_same_numbers_recovers(two: Two) -> None:
    two.second.add([two.pack(12, "beta")], TERMS)
    two.first.revoke("ink:1", "it is harmful")
    two.upload("second")
    two.world.device().fetch()
    assert read_state(two.world.home / "repo").snapshot.version == read_state(two.world.home / "second").snapshot.version
    two.machine("repo", wanted=False).refresh()
    two.upload("repo")
    two.world.device().fetch()
    assert two.world.running() == {}
    with pytest.raises(RefusedError, match=r"the revocation of ink:1, which this copy lacks; it lacks beta:1"):
        two.second.refresh()


def test_a_device_does_not_take_a_revocation_back(two: Two) -> None:
    two.first.revoke("ink:1", "it is harmful")
    two.upload("repo")
    two.world.device().fetch()
    blind = two.machine("second", wanted=False)
    blind.add([two.pack(12, "beta")], TERMS)
    blind.refresh()
    two.upload("second")
    for _ in range(2):
        with pytest.raises(VerificationError, match=r"targets\.json: expected ink:1 revoked, as before, found that it is not \(rollback\)"):
            two.world.device().fetch()
    two.first.repair()
    two.upload("repo")
    assert two.labels() == {"beta:1"}
    assert two.world.running() == {}


def test_a_copy_that_is_ahead_goes_on_and_only_its_numbers_rise(two: Two) -> None:
    two.first.add([two.pack(11, "alpha")], TERMS)
    two.second.refresh()
    two.upload("second")
    two.first.refresh()
    two.upload("repo")
    assert two.labels() == {"ink:1", "alpha:1"}
    assert not any("taken over" in note for note in two.notes)


def test_keys_that_another_machine_has_rotated_are_taken_over(two: Two) -> None:
    two.first.rotate(["timestamp", "snapshot"])
    two.upload("repo")
    two.second.add([two.pack(12, "beta")], TERMS)
    two.upload("second")
    assert two.labels() == {"ink:1", "beta:1"}
    assert read_state(two.world.home / "second").root.version == 2


def test_an_unserved_add_survives_a_rotation_elsewhere(two: Two) -> None:
    two.second.add([two.pack(12, "beta")], TERMS)
    two.first.rotate(["targets", "timestamp", "snapshot"])
    two.upload("repo")
    two.second.refresh()
    two.upload("second")
    assert two.labels() == {"ink:1", "beta:1"}


def test_two_rotations_at_once_are_told_and_nothing_is_signed(two: Two) -> None:
    shutil.copytree(two.world.home / "keys", two.world.home / "keys2")
    two.first.rotate(["timestamp"])
    two.world.keys = type(two.world.keys)(two.world.home / "keys2", b"a password of tests")
    two.machine("second").rotate(["timestamp"])
    two.upload("repo")
    with pytest.raises(RefusedError, match=r"2\.root\.json: expected the root of this copy, found another one .* go on from a copy"):
        two.machine("second").refresh()


def test_numbers_that_nobody_has_counted_up_to_are_not_counted_on_from(two: Two) -> None:
    def leap(payload: Any) -> None:
        payload.version += 2_000_000

    two.world.forge("timestamp", leap)
    with pytest.raises(RefusedError, match=r"expected a version of at most \d+, found 2\d{6}; .* may have been stolen"):
        two.first.refresh()
    two.machine("repo", wanted=False).rotate(["timestamp"])
    two.upload("repo")
    assert two.labels() == {"ink:1"}


def test_what_is_served_is_not_believed_without_signatures(two: Two) -> None:
    path = two.world.metadata("targets")
    path.write_bytes(path.read_bytes().replace(b"ink", b"ink "))
    with pytest.raises(VerificationError, match=r"targets\.json: expected signed targets metadata, found something else"):
        two.first.refresh()


def test_an_expired_repository_can_be_refreshed(two: Two) -> None:
    two.world.forge("timestamp", expire)
    assert "timestamp" in two.first.refresh().signed


def test_the_address_is_remembered_and_its_absence_told(world: World) -> None:
    notes: list[str] = []
    alone = Repository(world.home / "repo", world.keys, ServedComparison(on_note=notes.append))
    alone.refresh()
    assert notes == ["not compared with what devices see: say with --url where the repository is served"]
    Repository(world.home / "repo", world.keys, ServedComparison(url=str(world.server))).refresh()
    alone.refresh()
    assert len(notes) == 1
    shutil.rmtree(world.server)
    with pytest.raises(UsageError, match="--url: expected http"):
        alone.refresh()
    with pytest.raises(UsageError, match="--url: expected an address without user"):
        Repository(world.home / "repo", world.keys, ServedComparison(url="http://u:p@host")).refresh()
    with pytest.raises(BackendError, match="nothing was signed, check the address and the network"):
        Repository(world.home / "repo", world.keys, ServedComparison(url="http://127.0.0.1:9")).refresh()


def test_before_the_first_upload_there_is_nothing_to_compare_with(world: World) -> None:
    notes: list[str] = []
    shutil.rmtree(world.server)
    world.server.mkdir()
    Repository(world.home / "repo", world.keys, ServedComparison(url=str(world.server), on_note=notes.append)).refresh()
    assert notes == [f"nothing is served yet at {world.server}"]


def test_a_clock_that_is_behind_that_of_the_last_signing_is_told(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    behind = signed.now() - timedelta(days=400)
    for module in (signed, repository_module, working_copy):
        monkeypatch.setattr(module, "now", lambda: behind)
    two.first.refresh()
    assert any("the clock here says" in note for note in two.notes)


@pytest.mark.parametrize("lost", ["snapshot", "timestamp", "targets"])
def test_what_a_copy_has_lost_is_rebuilt_from_the_rest_and_what_is_served(two: Two, lost: str) -> None:
    two.world.add(2)
    folder = two.world.home / "repo/metadata"
    path = folder / "timestamp.json" if lost == "timestamp" else max(folder.glob(f"*.{lost}.json"))
    path.unlink()
    with pytest.raises(VerificationError, match="quad publish repair"):
        two.first.refresh()
    assert two.first.repair().signed[-2:] == ("snapshot", "timestamp")
    two.upload("repo")
    assert two.labels() == {"ink:1", "ink:2"}
    two.first.refresh()


def test_a_lost_snapshot_is_rebuilt_without_a_server_and_without_the_key_of_the_list(world: World) -> None:
    for path in (*(world.home / "repo/metadata").glob("*.snapshot.json"), *(world.home / "keys").glob("targets-*")):
        path.unlink()
    assert world.repository.repair().signed == ("snapshot", "timestamp")
    world.serve()
    world.device().fetch()


def test_a_snapshot_that_is_lost_on_the_server_too_is_rebuilt_when_told_so(two: Two) -> None:
    two.first.refresh()
    for top in (two.world.home / "repo", two.world.server):
        max((top / "metadata").glob("*.snapshot.json")).unlink()
    with pytest.raises(VerificationError, match=r"server/metadata/2\.snapshot\.json: .*--no-compare repairs this copy alone"):
        two.first.repair()
    assert two.machine("repo", wanted=False).repair().signed == ("snapshot", "timestamp")
    two.upload("repo")
    two.first.refresh()
    assert two.labels() == {"ink:1"}


@pytest.mark.parametrize("lost", ["timestamp", "targets"])
def test_what_nobody_knows_any_more_is_not_made_up(world: World, lost: str) -> None:
    folder = world.home / "repo/metadata"
    path = folder / "timestamp.json" if lost == "timestamp" else max(folder.glob("*.targets.json"))
    path.write_bytes(b"{")
    with pytest.raises(VerificationError, match=rf"{lost}\.json: expected the newest .*, found none that is whole"):
        world.repository.repair()
