"""The log of a device says each step of an update, and nothing of a password."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from quad.core.errors import BackendError, CompatibilityError, VerificationError
from quad.delivery.device.device import Device
from quad.delivery.device.events import Access
from tests.delivery.http_server import serving
from tests.delivery.simulator import PASSWORD, World, expire, nothing

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


def test_an_address_with_a_password_is_not_logged(world: World, tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    world.add(2)
    platform = world.device()._platform
    with serving(world.server) as served:
        url = served.url.replace("http://", f"http://user:{SECRET}@")
        device = Device(tmp_path / "other", platform, access=Access(url, world.root.read_bytes()))
        assert device.install("ink", nothing).version == 2
        next(world.server.rglob("timestamp.json")).write_bytes(b"{}")
        with pytest.raises(VerificationError):
            device.fetch()
    with pytest.raises(BackendError):
        device.fetch()
    assert "refreshed to" in log.text
    assert SECRET not in log.text
    assert PASSWORD.decode() not in log.text
