"""A world for each test."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.delivery.simulator import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A publisher with one pack, and a device that has it installed."""
    made = World(tmp_path)
    made.add(1)
    assert made.install() == 1
    return made


@pytest.fixture
def new_device(world: World) -> Callable[[], World]:
    """The same world with a device that has seen nothing yet."""

    def forget() -> World:
        shutil.rmtree(world.store)
        return world

    return forget
