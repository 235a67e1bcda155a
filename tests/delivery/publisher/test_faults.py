"""A disk that fails while something is published: what is said is what is there, and the call can be repeated."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from quad.core.errors import BackendError, InputError
from quad.delivery.publisher import signed
from quad.delivery.publisher.keys import Keys
from quad.delivery.publisher.repository import Repository
from quad.delivery.publisher.signed import read_state
from tests.delivery.simulator import PASSWORD, TERMS, World, make_pack, nothing


def _fail_writing(patch: pytest.MonkeyPatch, name: str) -> None:
    """The file of metadata of that name cannot be written."""
    real = signed.write_bytes

    def write(path: Path, data: bytes) -> None:
        if path.name == name:
            raise BackendError(f"{path}: cannot write (disk full); nothing was written, free some space or choose another place")
        real(path, data)

    patch.setattr(signed, "write_bytes", write)


def _fail_syncing(patch: pytest.MonkeyPatch, folder: Path, after: str = "") -> None:
    """A directory's names cannot be brought to the disk, once a file is there."""
    real = os.fsync

    def sync(handle: int) -> None:
        status = os.fstat(handle)
        if stat.S_ISDIR(status.st_mode) and os.path.samestat(status, folder.stat()) and (not after or after in seen):
            raise OSError(errno.EIO, "Input/output error")
        real(handle)

    real_replace, seen = os.replace, set[str]()

    def replace(source: Path, place: Path) -> None:
        real_replace(source, place)
        seen.add(Path(place).name)

    patch.setattr(os, "replace", replace)
    patch.setattr(os, "fsync", sync)


@pytest.mark.parametrize("name", ["1.root.json", "1.targets.json", "1.snapshot.json", "timestamp.json"])
def test_an_init_that_failed_half_way_is_repeated_and_leaves_no_key_that_nothing_names(tmp_path: Path, name: str) -> None:
    repository = Repository(tmp_path / "repo", Keys(tmp_path / "keys", PASSWORD))
    with pytest.MonkeyPatch.context() as patch:
        _fail_writing(patch, name)
        with pytest.raises(BackendError, match="disk full"):
            repository.init()
    root = repository.init()
    assert root.is_file()
    assert len(list((tmp_path / "keys").iterdir())) == 6
    assert read_state(tmp_path / "repo").targets.version == 1
    with pytest.raises(InputError, match="expected a new or empty directory"):
        repository.init()


def test_an_init_takes_no_directory_of_something_else_for_its_own(tmp_path: Path) -> None:
    (tmp_path / "repo/metadata").mkdir(parents=True)
    (tmp_path / "repo/metadata/notes.json").write_text("mine")
    with pytest.raises(InputError, match="expected a new or empty directory"):
        Repository(tmp_path / "repo", Keys(tmp_path / "keys", PASSWORD)).init()
    assert not (tmp_path / "keys").exists()


def test_an_add_that_is_on_offer_says_so_though_the_disk_failed_after_it(world: World) -> None:
    with pytest.MonkeyPatch.context() as patch:
        _fail_syncing(patch, world.home / "repo/metadata", after="timestamp.json")
        with pytest.raises(BackendError, match=r"timestamp\.json is published; what comes after that failed \(.*Input/output error\)"):
            world.add(2)
    world.serve()
    assert world.install() == 2


def test_an_add_that_failed_before_that_is_not_on_offer_and_repeated(world: World) -> None:
    with pytest.MonkeyPatch.context() as patch:
        _fail_writing(patch, "timestamp.json")
        with pytest.raises(BackendError, match="nothing was written"):
            world.add(2)
    world.serve()
    assert world.install() == 1
    (offer,) = world.repository.add([make_pack(world.home / "again.qpack", 2)], TERMS)
    assert offer.label == "ink:2"


def test_a_revocation_is_told_as_published_though_the_file_stays(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.unlink

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if path.suffix == ".qpack":
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        real(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    with pytest.raises(BackendError, match=r"ink:1 is revoked, and that is published; what comes after that failed \(.*Read-only"):
        world.repository.revoke("ink:1")
    world.serve()
    monkeypatch.undo()
    world.device().fetch()
    assert world.running() == {}


def test_an_install_that_has_switched_says_so_though_the_disk_failed_after_it(world: World) -> None:
    world.add(2)
    with pytest.MonkeyPatch.context() as patch:
        _fail_syncing(patch, world.store / "installed")
        with pytest.raises(BackendError, match=r"adapter ink: version 2 runs now; what comes after that failed"):
            world.install()
    assert world.running()["ink"] == (world.home / "pack2.qpack").read_bytes()
    assert world.install() == 2
    with pytest.MonkeyPatch.context() as patch:
        _fail_syncing(patch, world.store)
        with pytest.raises(BackendError, match=r"adapter ink: version 1 runs now"):
            world.device().rollback("ink", nothing)
