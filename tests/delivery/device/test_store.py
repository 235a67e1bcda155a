"""The store's own files and nobody else's; what is on the disk for good when an install says so."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest

from quad.core.errors import BackendError, UsageError
from quad.core.storage.install_pointers import pointer_path
from tests.delivery.simulator import World, nothing


def test_files_that_are_not_called_as_quad_calls_its_own_are_left_alone(world: World) -> None:
    """As where `--store` names a directory of something else."""
    world.store = world.home / "project"
    theirs = {"packs/mine.qpack", "fetched/notes", "partial/.keep", "stage/play.txt", "README"}
    for name in theirs:
        (world.store / name).parent.mkdir(parents=True, exist_ok=True)
        (world.store / name).write_text("mine")
    stray = f"packs/{'a' * 64}.qpack"
    (world.store / stray).write_bytes(b"left by a killed install")
    with pytest.raises(UsageError, match="expected a previous version"):
        world.device().rollback("ink", nothing)
    assert world.files() == theirs
    world.install()
    assert theirs < world.files()


def test_an_adapter_is_not_given_up_because_its_pointer_cannot_be_read(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    real, sick, before = Path.read_bytes, pointer_path(world.store, "ink"), world.files()

    def read(path: Path) -> bytes:
        if path == sick:
            raise OSError(errno.EIO, "Input/output error", str(path))
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", read)
    with pytest.raises(BackendError, match=r"ink\.json: expected something that can be read, found Input/output error"):
        world.device().clean()
    assert world.files() == before
    assert not world.changes


def test_a_disk_that_is_full_while_metadata_is_read_is_one_line(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.add(2)
    before = world.running()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tuf.ngclient.Updater._persist_file", full)
    with pytest.raises(BackendError, match=r"cannot write \(disk full\)"):
        world.install()
    assert world.running() == before


@pytest.mark.skipif(sys.platform == "win32", reason="directories are not synced there")
def test_every_directory_that_an_install_makes_is_kept_by_the_one_above_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name made in a directory is there after a power cut once that directory was synced."""
    unsynced: set[tuple[int, int]] = set()
    real_sync, real_mkdir = os.fsync, os.mkdir

    def identity(status: os.stat_result) -> tuple[int, int]:
        return status.st_dev, status.st_ino

    def mkdir(path: Path, *options: int) -> None:
        real_mkdir(path, *options)
        if not str(path).endswith(".stage") and "root_history" not in str(path):
            unsynced.add(identity(os.stat(Path(path).parent)))

    def sync(handle: int) -> None:
        real_sync(handle)
        unsynced.discard(identity(os.fstat(handle)))

    world.store = world.home / "new" / "store"
    world.store.mkdir(parents=True)
    monkeypatch.setattr(os, "mkdir", mkdir)
    monkeypatch.setattr(os, "fsync", sync)
    world.install()
    assert not unsynced
