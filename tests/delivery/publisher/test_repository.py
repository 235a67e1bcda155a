"""The publisher's directory: valid for a stock tuf client, keys out of reach, versions that count up, rotations that chain."""

from __future__ import annotations

import json
import stat
from datetime import timedelta
from pathlib import Path

import pytest
from tuf.ngclient import Updater

from quad.core.errors import InputError, UsageError, VerificationError
from quad.delivery.publisher import signed
from quad.delivery.publisher.keys import Keys
from quad.delivery.publisher.repository import Repository
from quad.delivery.publisher.signed import read_state
from quad.delivery.publisher.terms import PublishTerms
from tests.delivery.simulator import PASSWORD, TERMS, World, flip, make_pack


def _stock_client(world: World, folder: Path) -> Updater:
    """tuf's own client, which knows nothing of quad, on the directory as it lies."""
    folder.mkdir(exist_ok=True)
    from quad.delivery.device.download import MetadataFetcher
    from quad.delivery.source import DirectorySource

    client = Updater(
        str(folder), "metadata/", fetcher=MetadataFetcher(DirectorySource(world.home / "repo")), bootstrap=world.root.read_bytes()
    )
    client.refresh()
    return client


def test_a_stock_client_reads_it_and_finds_the_signed_terms(world: World, tmp_path: Path) -> None:
    target = _stock_client(world, tmp_path / "client").get_targetinfo("ink/1.qpack")
    assert target is not None
    assert target.custom == {
        "name": "ink", "version": 1, **world.parents, "at_least": "0.1", "below": "1", "min_ram_bytes": 1000, "tasks": [],
    }  # fmt: skip
    assert (world.home / "repo" / "targets/ink" / f"{target.hashes['sha256']}.1.qpack").stat().st_size == target.length


def test_the_root_needs_two_of_three_and_each_role_has_its_own_key(world: World) -> None:
    root = read_state(world.home / "repo").root
    assert (root.roles["root"].threshold, len(root.roles["root"].keyids)) == (2, 3)
    every = [keyid for role in root.roles.values() for keyid in role.keyids]
    assert len(every) == len(set(every)) == 6
    assert root.consistent_snapshot


def test_keys_are_encrypted_and_only_their_owner_reads_them(world: World) -> None:
    files = list((world.home / "keys").glob("*.pem"))
    assert len(files) == 6
    for path in files:
        assert path.read_text().startswith("-----BEGIN ENCRYPTED PRIVATE KEY-----")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(InputError, match="expected a key under this password, found another password"):
        Repository(world.home / "repo", Keys(world.home / "keys", b"not the password")).refresh()


@pytest.mark.parametrize("place", ["repo", "repo/metadata", "repo/../repo/keys"])
def test_keys_do_not_go_where_they_would_be_published(tmp_path: Path, place: str) -> None:
    with pytest.raises(UsageError, match=r"--keys: expected a directory outside of .*; keys must not be published"):
        Repository(tmp_path / "repo", Keys(tmp_path / place, PASSWORD))
    assert not (tmp_path / "repo").exists()


def test_a_short_password_is_refused_and_one_that_no_file_can_be_encrypted_with(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected 8 characters or more, found 7"):
        Keys(tmp_path, b"1234567")
    with pytest.raises(UsageError, match="expected 1023 bytes or fewer, found 1024"):
        Keys(tmp_path, bytes(1024))
    Keys(tmp_path, b"x" * 1023).make("root")


def test_versions_count_up_and_those_of_revoked_packs_do_not_come_again(world: World) -> None:
    ink, sky = world.add(2), world.add(7, name="sky")
    world.repository.revoke("ink:2")
    (offer,) = world.repository.add([make_pack(world.home / "new.qpack", 3)], TERMS)
    assert offer.label == "ink:3"
    with pytest.raises(InputError, match=r"found one that is revoked as ink:2; leave it out"):
        world.repository.add([ink], TERMS)
    with pytest.raises(InputError, match=r"found one that is on offer as sky:1"):
        world.repository.add([sky], TERMS)


def test_only_what_is_named_is_revoked(world: World) -> None:
    world.add(2)
    world.add(3)
    assert [entry.version for entry in world.repository.revoke("ink:2", "why")] == [2]
    with pytest.raises(VerificationError, match="version 2 revoked: why"):
        world.repository.revoke("ink:2")
    with pytest.raises(UsageError, match="found 'ink:'"):  # as a script writes it that has no number; not every version
        world.repository.revoke("ink:")
    assert [entry.version for entry in world.repository.revoke("ink")] == [1, 3]
    assert not list((world.home / "repo/targets").rglob("*.qpack"))


def test_a_pack_that_was_changed_or_says_no_bundle_is_not_offered(world: World) -> None:
    flip(make_pack(world.home / "bad.qpack", 5))
    with pytest.raises(VerificationError, match="the file was changed or damaged"):
        world.repository.add([world.home / "bad.qpack"], TERMS)
    with pytest.raises(InputError, match="expected digests of its bundle"):
        world.repository.add([make_pack(world.home / "none.qpack", 6, parents={})], TERMS)
    assert read_state(world.home / "repo").targets.version == 2


@pytest.mark.parametrize(
    ("first", "before", "says"), [("soon", "1", r"releases, found soon\.\.1"), ("1", "1", r"a range of releases, found 1\.\.1")]
)
def test_what_is_no_range_of_releases_is_wrong_usage(first: str, before: str, says: str) -> None:
    with pytest.raises(UsageError, match=f"--runtime: expected {says}"):
        PublishTerms(first, before)


def test_refresh_signs_the_timestamp_and_what_is_past_half_of_its_life(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    before = read_state(world.home / "repo")
    assert world.repository.refresh().signed == ("timestamp",)
    later = signed.now() + timedelta(days=20)
    monkeypatch.setattr(signed, "now", lambda: later)
    monkeypatch.setattr("quad.delivery.publisher.repository.now", lambda: later)
    done = world.repository.refresh()
    after = read_state(world.home / "repo")
    assert done.signed == ("snapshot", "timestamp")
    assert (after.timestamp.version, after.snapshot.version, after.targets.version) == (before.timestamp.version + 2, 3, 2)
    assert after.timestamp.expires - before.timestamp.expires >= timedelta(days=19)
    assert done.left_days["timestamp"] == 7


def test_refresh_needs_the_timestamps_key_alone(world: World) -> None:
    for path in (world.home / "keys").glob("*.pem"):
        if not path.name.startswith("timestamp"):
            path.unlink()
    assert world.repository.refresh().signed == ("timestamp",)
    with pytest.raises(UsageError, match="expected 1 keys of role targets, found 0"):
        world.add(2)


def test_a_lost_key_is_replaced_and_a_root_needs_two_of_its_own(world: World, tmp_path: Path) -> None:
    for path in (world.home / "keys").glob("targets-*.pem"):
        path.unlink()
    assert world.repository.rotate(["targets"]) == 3
    first, *_ = sorted((world.home / "keys").glob("root-*.pem"))
    first.unlink()
    assert world.repository.rotate(["root"]) == 4
    assert sorted(path.name[:4] for path in (world.home / "keys/retired").iterdir()) == ["root", "root"]
    for path in sorted((world.home / "keys").glob("root-*.pem"))[:2]:
        path.unlink()
    with pytest.raises(UsageError, match="expected 2 keys of role root, found 1"):
        world.repository.rotate(["timestamp"])
    _stock_client(world, tmp_path / "client")


def test_a_client_of_the_first_root_follows_every_rotation(world: World, tmp_path: Path) -> None:
    _stock_client(world, tmp_path / "old")
    for roles in (["root"], ["timestamp"], ["targets", "snapshot"], ["root", "targets", "snapshot", "timestamp"]):
        before = read_state(world.home / "repo").root
        world.repository.rotate(roles)
        after = read_state(world.home / "repo").root
        for role in signed.ROLES:
            assert (set(before.roles[role].keyids) & set(after.roles[role].keyids) == set()) == (role in roles)
    for name in ("old", "new"):
        assert _stock_client(world, tmp_path / name).get_targetinfo("ink/1.qpack") is not None


@pytest.mark.parametrize("lost", [(), ("timestamp",), ("targets", "snapshot")])
def test_a_rotation_is_whole_after_every_file_that_it_writes(world: World, monkeypatch: pytest.MonkeyPatch, lost: tuple[str, ...]) -> None:
    """For the publisher, for a device that knew it before and for one of the first root; keys that are lost or not."""
    real, known, seen = signed.put, world.store, []

    def put(repository: Path, name: str, data: bytes) -> None:
        real(repository, name, data)
        seen.append(name)
        read_state(world.home / "repo")
        world.serve()
        for store in (known, world.home / f"new{len(seen)}"):
            world.store = store
            assert world.install() == 1

    for role in lost:
        for path in (world.home / "keys").glob(f"{role}-*.pem"):
            path.unlink()
    monkeypatch.setattr(signed, "put", put)
    version = world.repository.rotate(["targets", "snapshot", "timestamp"])
    assert seen[-1] == f"{version}.root.json"


def test_root_keys_may_lie_in_another_place(tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    Repository(repo, Keys(tmp_path / "online", PASSWORD, tmp_path / "stick")).init()
    assert {path.name.split("-")[0] for path in (tmp_path / "stick").iterdir()} == {"root"}
    assert Repository(repo, Keys(tmp_path / "online", PASSWORD)).refresh().signed == ("timestamp",)


def test_a_list_that_no_device_would_read_is_not_published(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signed, "LARGEST_LIST", world.metadata("targets").stat().st_size)
    with pytest.raises(InputError, match=r"targets\.json: expected at most \d+ bytes, devices read no more, found \d+; nothing was publ"):
        world.add(2)
    assert read_state(world.home / "repo").targets.version == 2
    world.repository.revoke("ink")


def test_nothing_is_signed_on_top_of_what_another_has_changed(world: World) -> None:
    path = max((world.home / "repo/metadata").glob("*.targets.json"))
    text = json.loads(path.read_text())
    text["signed"]["targets"] = {}
    path.write_text(json.dumps(text))
    with pytest.raises(VerificationError, match=r"targets\.json: expected signed targets metadata, found something else"):
        world.repository.refresh()


def test_init_takes_a_new_place_and_rotate_a_role(world: World) -> None:
    with pytest.raises(InputError, match="expected a new or empty directory"):
        world.repository.init()
    with pytest.raises(UsageError, match="ROLE: expected one of root, targets, snapshot, timestamp, found mirror"):
        world.repository.rotate(["mirror"])
    with pytest.raises(InputError, match="expected a repository, found none; make one with quad publish init"):
        Repository(world.home / "nowhere", world.keys).refresh()
