"""A file is written whole, under a name that nobody can know before, and only where a file may be."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest

from quad.core.errors import BackendError, InputError
from quad.core.storage.files import new_file, require_writable, sync_directory, write_bytes


def _device(path: Path) -> None:
    try:
        os.mknod(path, 0o20600, os.makedev(1, 3))  # as /dev/null, which must not be tried here
    except PermissionError:
        pytest.skip("only root makes devices")


def _half(stream: BinaryIO) -> None:
    stream.write(b"half")
    raise KeyError


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        os.chdir(path.parent)  # the path of a socket is short
        bound.bind(path.name)


ODD: dict[str, Callable[[Path], object]] = {
    "a link": lambda path: path.symlink_to(path.parent / "elsewhere"),
    "a link to nothing": lambda path: path.symlink_to(path.parent / "nowhere"),
    "a link in a circle": lambda path: path.symlink_to(path.name),
    "a pipe": os.mkfifo,
    "a socket": _socket,
    "a directory": Path.mkdir,
    "a device": _device,
}


@pytest.mark.parametrize("kind", ODD)
def test_only_a_file_is_replaced(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").write_text("precious")
    ODD[kind](tmp_path / "x")
    before = (tmp_path / "x").lstat()
    expected = kind if kind in ("a directory", "a pipe", "a socket", "a device") else "a link"
    with pytest.raises(InputError, match=rf"/x: expected a new name or a file to replace, found {expected}; it is left as it is"):
        write_bytes(tmp_path / "x", b"new")
    assert os.path.samestat(before, (tmp_path / "x").lstat())
    assert (tmp_path / "elsewhere").read_text() == "precious"
    assert {path.name for path in tmp_path.iterdir()} == {"elsewhere", "x"}


@pytest.mark.parametrize("lay", [os.mkfifo, lambda path: path.symlink_to("elsewhere"), Path.mkdir], ids=["a pipe", "a link", "a directory"])
def test_what_was_laid_beside_it_is_not_touched(tmp_path: Path, lay: Callable[[Path], object]) -> None:
    (tmp_path / "elsewhere").write_text("precious")
    lay(tmp_path / ".x.part")
    write_bytes(tmp_path / "x", b"new")
    assert ((tmp_path / "x").read_bytes(), (tmp_path / "elsewhere").read_text()) == (b"new", "precious")
    assert {path.name for path in tmp_path.iterdir()} == {"elsewhere", "x", ".x.part"}


def test_two_writers_of_one_name_end_well_and_the_later_one_stays(tmp_path: Path) -> None:
    with new_file(tmp_path / "x") as stream:
        stream.write(b"later")
        write_bytes(tmp_path / "x", b"earlier")  # which must not take the other one's part for a dead one's
        assert (tmp_path / "x").read_bytes() == b"earlier"
    assert (tmp_path / "x").read_bytes() == b"later"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_what_dead_writers_left_goes_and_nothing_else(tmp_path: Path) -> None:
    name = "x" * 250  # with what is added longer than a name may be
    left = [f".{name[:48]}.{'0' * 16}.part"]
    others = [".x.part", f".{name[:48]}.{'0' * 15}.part", f".y.{'0' * 16}.part"]
    for other in (*left, *others):
        (tmp_path / other).write_bytes(b"half")
    write_bytes(tmp_path / name, b"new")
    assert {path.name for path in tmp_path.iterdir()} == {name, *others}


def test_the_mode_is_what_is_asked_for_or_that_of_the_earlier_file(tmp_path: Path) -> None:
    write_bytes(tmp_path / "secret", b"1", mode=0o600)
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600
    write_bytes(tmp_path / "secret", b"2")
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600
    write_bytes(tmp_path / "secret", b"3", mode=0o644)
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("earlier", [None, b"old"])
def test_a_failure_says_what_is_there_now(tmp_path: Path, step: str, earlier: bytes | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if earlier is not None:
        write_bytes(tmp_path / "x", earlier)

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, step, fail)
    state = "nothing was written" if earlier is None else "the earlier file is unchanged"
    with pytest.raises(BackendError, match=rf"/x: cannot write \(Input/output error\); {state}, free some space or choose another place"):
        write_bytes(tmp_path / "x", b"new")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == ([] if earlier is None else [earlier])


def test_a_rename_that_fails_after_it_is_done_is_no_untruth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.replace

    def late(source: Path, place: Path) -> None:
        real(source, place)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "replace", late)
    with pytest.raises(BackendError, match="another file is there now"):
        write_bytes(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"new"


def test_an_error_within_leaves_the_earlier_file(tmp_path: Path) -> None:
    write_bytes(tmp_path / "x", b"old")
    with pytest.raises(KeyError), new_file(tmp_path / "x") as stream:
        _half(stream)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_a_directory_that_cannot_be_synced_does_not_say_that_nothing_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(BackendError, match="what was changed there may be lost if the power fails"):
        sync_directory(tmp_path)


def test_a_full_disk_is_found_before_the_work_and_nothing_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_writable(tmp_path / "new" / "x")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BackendError, match=r"/new/x: cannot write \(disk full\); nothing was written, free some space"):
        require_writable(tmp_path / "new" / "x")
    assert not list(tmp_path.iterdir())
