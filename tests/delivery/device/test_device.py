"""What a device does with an honest publisher: refuse before it fetches, switch whole, step back, run on without the network."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from quad.core.errors import BackendError, CompatibilityError, InputError, UsageError, VerificationError
from quad.core.storage.files import directory_lock
from quad.core.storage.install_pointers import read_pointers
from quad.delivery.device.device import Device
from quad.delivery.device.events import Access
from quad.delivery.device.fit import Platform
from tests.delivery.simulator import World, expire, flip, nothing


def _bytes_of(world: World, seed: int) -> bytes:
    return (world.home / f"pack{seed}.qpack").read_bytes()


@pytest.mark.parametrize(
    ("platform", "says"),
    [
        ({"parents": {"slots": "6" * 64, "profile": "9" * 64}}, "ink:2: expected slots 55555555, found slots 66666666 of bundle 'phone'"),
        ({"parents": {"slots": "5" * 64}}, "ink:2: expected profile 99999999, found profile none of bundle 'phone'"),
        ({"release": "1.0.0"}, r"ink:2: expected quad 0\.1 or later, before 1, found 1\.0\.0"),
        ({"release": "0.0.9"}, r"ink:2: expected quad 0\.1 or later, before 1, found 0\.0\.9"),
        ({"ram_bytes": 999}, "ink:2: expected 1000 bytes, found 999 bytes of memory"),
    ],
)
def test_what_does_not_fit_is_refused_before_a_byte_of_it_is_fetched(world: World, platform: dict[str, object], says: str) -> None:
    world.add(2)
    for path in world.pack_files():
        path.unlink()
    for act in (lambda device: device.fetch(["ink"]), lambda device: device.install("ink", nothing)):
        with pytest.raises(CompatibilityError, match=f"{says}.*; nothing was fetched"):
            act(world.device(**platform))
    assert world.device(**platform).listing()[0].offered[2] != ""
    assert world.device().listing()[0].offered[2] == ""


def test_another_graph_is_refused_where_both_name_one(world: World) -> None:
    world.add(2, parents={**world.parents, "graph": "3" * 64})
    with pytest.raises(CompatibilityError, match="expected graph 33333333, found graph 44444444"):
        world.device(parents={**world.parents, "graph": "4" * 64}).install("ink:2", nothing)
    assert world.install() == 2


def test_a_name_alone_is_its_newest_version_that_fits(world: World) -> None:
    """One repository serves two bundles: each device takes its own line of versions."""
    other = {"slots": "6" * 64, "profile": "7" * 64}
    world.add(2, parents=other)
    world.add(3)
    world.add(4, parents=other)
    assert world.device().install("ink", nothing).version == 3
    with pytest.raises(CompatibilityError, match="ink:4: expected slots 66666666, found slots 55555555"):
        world.device().install("ink:4", nothing)
    assert [offer.terms.version for offer in world.device(parents=other).fetch(["ink"])] == [4]


def test_a_device_that_does_not_say_its_memory_is_refused_nothing_for_it(world: World) -> None:
    world.add(2)
    assert world.device(ram_bytes=0).install("ink", nothing).version == 2


def test_an_update_keeps_the_version_before_and_a_rollback_is_no_one_way(world: World) -> None:
    world.add(2)
    assert world.install() == 2
    assert world.running()["ink"] == _bytes_of(world, 2)
    assert world.device().rollback("ink", nothing).version == 1
    assert world.running()["ink"] == _bytes_of(world, 1)
    assert world.device().rollback("ink", nothing).version == 2
    world.add(3)
    assert world.install() == 3
    assert len([name for name in world.files() if name.startswith("packs/")]) == 2
    assert world.files() == {"trust.json", "installed/ink.json", *(name for name in world.files() if name.startswith("packs/"))}


def test_an_older_version_by_its_number_and_the_same_again(world: World) -> None:
    world.add(2)
    world.install()
    assert world.install("ink:1") == 1
    assert not world.device().install("ink:1", nothing).switched


def test_a_pack_that_fails_its_smoke_run_changes_nothing_and_stays_away(world: World) -> None:
    world.add(2)
    before = world.files()
    tried: list[Path] = []

    def smoke(pack: Path) -> None:
        tried.append(pack)
        assert pack.read_bytes() == _bytes_of(world, 2)
        raise BackendError("no finite numbers")

    with pytest.raises(BackendError, match="no finite numbers"):
        world.device().install("ink", smoke)
    assert len(tried) == 1
    assert (world.running()["ink"], world.files()) == (_bytes_of(world, 1), before)
    with pytest.raises(UsageError, match="expected a previous version, found none"):
        world.device().rollback("ink", smoke)


def test_what_was_fetched_is_installed_without_fetching_it_again(world: World) -> None:
    world.add(2)
    (offer,) = world.device().fetch(["ink"])
    assert offer.label == "ink:2"
    assert world.running()["ink"] == _bytes_of(world, 1)
    for path in world.pack_files():
        path.unlink()
    assert world.install() == 2


def test_what_is_installed_runs_on_offline_and_past_every_expiry(world: World) -> None:
    world.add(2)
    world.install()
    world.forge("timestamp", expire)
    with pytest.raises(VerificationError, match="freeze"):
        world.install()
    shutil.rmtree(world.server)
    with pytest.raises(UsageError, match="--url"):
        world.install()
    assert world.running()["ink"] == _bytes_of(world, 2)
    assert world.device().rollback("ink", nothing).version == 1


def test_the_root_and_the_address_are_remembered(world: World) -> None:
    world.add(2)
    platform = Platform(bundle="phone", parents=world.parents, release="0.1.0")
    assert Device(world.store, platform).install("ink", nothing).version == 2
    fresh = world.home / "fresh"
    with pytest.raises(UsageError, match=r"fresh: expected a root to trust, found none; give --root"):
        Device(fresh, platform, access=Access(url=str(world.server))).fetch()
    with pytest.raises(UsageError, match="--url: expected where the repository is, found nothing"):
        Device(fresh, platform, access=Access(root=world.root.read_bytes())).fetch()
    with pytest.raises(VerificationError, match="--root: expected a root signed by its own keys"):
        Device(fresh, platform, access=Access(url=str(world.server), root=b"{}")).fetch()


def test_a_revoked_pack_that_runs_steps_back_at_the_next_refresh(world: World) -> None:
    world.add(2)
    world.install()
    world.repository.revoke("ink:2", "it draws ghosts")
    world.serve()
    assert world.running()["ink"] == _bytes_of(world, 2)
    world.device().fetch()
    assert world.running()["ink"] == _bytes_of(world, 1)
    assert [(change.name, change.was, change.now, change.why) for change in world.changes] == [("ink", 2, 1, "revoked: it draws ghosts")]
    (listed,) = world.device().listing()
    assert (listed.installed, listed.previous, listed.revoked) == (1, None, {2: "it draws ghosts"})
    with pytest.raises(UsageError, match="expected a previous version, found none"):
        world.device().rollback("ink", nothing)


def test_a_revoked_pack_with_nothing_before_it_is_disabled(world: World) -> None:
    world.repository.revoke("ink")
    world.serve()
    world.device().fetch()
    assert world.running() == {}
    assert [(change.was, change.now) for change in world.changes] == [(1, None)]
    assert world.files() == {"trust.json"}
    world.add(2)
    assert world.install() == 2


def test_a_revoked_version_is_not_what_a_rollback_returns_to(world: World) -> None:
    world.add(2)
    world.install()
    world.repository.revoke("ink:1")
    world.serve()
    world.device().fetch()
    assert world.running()["ink"] == _bytes_of(world, 2)
    with pytest.raises(UsageError, match="expected a previous version, found none"):
        world.device().rollback("ink", nothing)


def test_a_pack_that_was_damaged_on_the_disk_is_never_switched_to_and_is_fetched_anew(world: World) -> None:
    world.add(2)
    world.install()
    first = read_pointers(world.store)["ink"].previous
    assert first is not None
    flip(world.store / f"packs/{first.sha256}.qpack")
    with pytest.raises(VerificationError, match="it was damaged on this disk, install it again"):
        world.device().rollback("ink", nothing)
    assert world.install("ink:1") == 1
    assert world.running()["ink"] == _bytes_of(world, 1)
    flip(world.store / f"packs/{first.sha256}.qpack")
    assert world.device().install("ink:1", nothing).switched
    assert world.running()["ink"] == _bytes_of(world, 1)


def test_a_pointer_or_a_pack_that_is_gone_is_told_and_steps_back(world: World) -> None:
    world.add(2)
    world.install()
    current = read_pointers(world.store)["ink"].current
    (world.store / f"packs/{current.sha256}.qpack").unlink()
    assert (world.device().listing()[0].installed, world.device().listing()[0].previous) == (None, 1)
    world.device().clean()
    assert [(change.was, change.now, change.why) for change in world.changes] == [(2, 1, "its pack was gone or cut")]
    (world.store / "installed/ink.json").write_bytes(b"{")
    world.device().clean()
    assert world.changes[-1].why == "its pointer was damaged"
    assert world.files() == {"trust.json"}


def test_one_installer_at_a_time(world: World) -> None:
    with (
        directory_lock(world.store, InputError("")),
        pytest.raises(InputError, match="expected no other installer at work on it, found one"),
    ):
        world.install()
    assert world.device().listing()[0].installed == 1


def test_what_is_not_on_offer_is_wrong_usage_that_lists_what_is(world: World) -> None:
    world.add(7, name="sky")
    for wish in ("moon", "ink:9", "ink:"):
        with pytest.raises(UsageError, match=f"adapter: expected one of ink:1, sky:1, found '{wish}'"):
            world.install(wish)


def test_a_damaged_trust_is_told_and_hides_no_adapter(world: World) -> None:
    (world.store / "trust.json").write_bytes(b"{")
    with pytest.raises(VerificationError, match=r"trust\.json: expected what quad wrote there.*remove it and begin again with --root"):
        world.device().fetch()
    assert world.running()["ink"] == _bytes_of(world, 1)
