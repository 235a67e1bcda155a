"""The log of a device says each step of an update, and nothing of a password."""

from __future__ import annotations

import logging

import msgspec
import pytest

from quad.core.errors import CompatibilityError, UsageError, VerificationError
from quad.delivery.device.device import Device
from quad.delivery.device.events import Access
from quad.delivery.device.trust import read_trust, write_trust
from tests.delivery.simulator import World, expire, nothing

SECRET = "a-secret-to-recognise"


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG)
    return caplog


def test_each_step_of_an_update_is_logged(world: World, log: pytest.LogCaptureFixture) -> None:
    world.add(2)
    assert world.install() == 2
    world.device().rollback("ink", nothing)
    for line in (
        "refreshed to root 1, targets 3",
        "pack ink:2: fetched and verified",
        "adapter ink:2: installed, version 1 before",
        "adapter ink: rolled back to version 1 from 2",
    ):
        assert line in log.text


def test_what_was_refused_is_logged_with_its_reason(world: World, log: pytest.LogCaptureFixture) -> None:
    world.add(2)
    with pytest.raises(CompatibilityError):
        world.device(ram_bytes=1).install("ink:2", nothing)
    assert "pack ink:2: does not fit" in log.text
    world.forge("timestamp", expire)
    with pytest.raises(VerificationError):
        world.install()
    assert "refused as freeze" in log.text


def test_a_revoked_adapter_that_steps_back_is_logged(world: World, log: pytest.LogCaptureFixture) -> None:
    world.repository.revoke("ink:1", "bad")
    world.serve()
    world.device().fetch()
    assert "adapter ink:1: stepped back, revoked: bad; disabled" in log.text
    assert "orphan removed: packs/" in log.text


@pytest.mark.parametrize(
    "url",
    [
        "http://user:{}@host/repo", "http://{}@host", "http://host/repo?key={}", "https://host/#{}", "ftp://user:{}@host", "http://u:{}@host:x/",
        "http://u:a/{}@host", "http://u:{}?@[x/", "file://u:{}@host/srv",
    ],
)  # fmt: skip
def test_a_password_in_an_address_is_refused_and_neither_kept_nor_told(world: World, url: str, log: pytest.LogCaptureFixture) -> None:
    access = Access(url=url.format(SECRET), root=world.root.read_bytes())
    with pytest.raises(UsageError, match="--url: expected an address without user, password and query") as caught:
        Device(world.store, world.device()._platform, access=access).fetch()
    assert SECRET not in str(caught.value) + log.text
    assert all(SECRET.encode() not in (world.store / name).read_bytes() for name in world.files())


def test_an_address_with_a_password_that_was_kept_before_is_not_used_again(world: World, log: pytest.LogCaptureFixture) -> None:
    trust = read_trust(world.store)
    assert trust is not None
    write_trust(world.store, msgspec.structs.replace(trust, url=f"http://user:{SECRET}@host/repo"))
    with pytest.raises(UsageError, match="--url: expected where the repository is, found nothing"):
        Device(world.store, world.device()._platform).fetch()
    world.device().fetch()
    assert SECRET not in (world.store / "trust.json").read_text() + log.text
