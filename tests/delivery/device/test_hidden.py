"""A store that cannot be read for a moment: every verb says so, nothing of it is deleted, older packs do not run unnoticed."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from quad.core.errors import BackendError, QuadError
from quad.runtime.adapters.follow_store import InstalledAdapters
from tests.core.storage.hiding import hide
from tests.delivery.simulator import World, nothing

VERBS: dict[str, Callable[[World], object]] = {
    "fetch": lambda world: world.device().fetch(["ink"]),
    "install": lambda world: world.install(),
    "rollback": lambda world: world.device().rollback("ink", nothing),
    "clean": lambda world: world.device().clean(),
    "list": lambda world: world.device().listing(),
}


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
@pytest.mark.parametrize("hidden", ["installed", "packs", "trust.json"])
@pytest.mark.parametrize("verb", VERBS)
def test_nothing_is_deleted_on_the_word_of_a_place_that_cannot_be_read(world: World, verb: str, hidden: str, number: int) -> None:
    world.add(2)
    world.install()
    before, runs = world.files(), world.running()
    with pytest.MonkeyPatch.context() as patch:
        hide(patch, world.store / hidden, number)
        with pytest.raises(QuadError, match=r"expected something that can be read, found (Permission|Input)"):
            VERBS[verb](world)
    assert world.files() == before
    assert (world.running(), world.changes) == (runs, [])
    world.device().clean()
    assert (world.files(), world.running()) == (before, runs)


@pytest.mark.parametrize("hidden", ["installed", "packs"])
def test_a_start_without_a_readable_store_is_refused_and_a_running_one_keeps_what_it_has(world: World, hidden: str) -> None:
    taken: dict[str, Path] = {}

    def register(path: Path, name: str) -> None:
        path.read_bytes()
        taken[name] = path

    running = InstalledAdapters(world.store, register, taken.pop)
    running.open()
    with pytest.MonkeyPatch.context() as patch:
        hide(patch, world.store / hidden)
        with pytest.raises(BackendError, match="expected something that can be read, found Permission denied"):
            InstalledAdapters(world.store, register, taken.pop).open()
        running.refresh()
        assert "Permission denied" in running.notes[0]
    assert list(taken) == ["ink"]
    running.refresh()
    assert running.notes == ()


def test_a_pack_that_cannot_be_opened_is_no_reason_to_start_with_an_older_one(world: World) -> None:
    def register(path: Path, name: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with pytest.raises(BackendError, match="found Permission denied"):
        InstalledAdapters(world.store, register, lambda _: None).open()
