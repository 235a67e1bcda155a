"""A full disk is one line that names the place that is full, and what was begun is gone."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import pytest

from quad.core.errors import BackendError
from quad.core.storage.directories import new_directory
from quad.core.storage.files import disk_error, inside, scratch_directory, writing_to

FULL = OSError(errno.ENOSPC, "No space left on device")


def _half(path: Path) -> None:
    path.write_bytes(b"half")
    raise FULL


def test_a_full_disk_for_temporary_files_is_said_of_them_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of the directory that is being written meanwhile, which may lie on another disk with room to spare."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    says = "^temporary files: cannot write \\(disk full\\); nothing was written, free some space or set TMPDIR to another place$"
    with pytest.raises(BackendError, match=says), new_directory(tmp_path / "phone", "bundle.json"), scratch_directory() as scratch:
        _half(scratch / "half")
    assert [path.name for path in tmp_path.rglob("*")] == ["tmp"]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ELOOP])
def test_nobody_is_told_to_free_space_where_space_is_not_what_lacks(number: int) -> None:
    told = str(disk_error("x", OSError(number, os.strerror(number))))
    assert told == f"x: cannot write ({os.strerror(number)}); nothing was written, choose another place"


def test_no_place_for_temporary_files_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(BackendError, match=r"^temporary files: cannot write .*set TMPDIR"), scratch_directory():
        pass


def test_the_innermost_place_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(BackendError, match=r"^here: cannot write \(disk full\)"),
        new_directory(tmp_path / "there", "x"),
        writing_to("here"),
    ):
        raise FULL
    assert list(tmp_path.iterdir()) == []


def test_links_in_a_circle_are_nothing_and_no_fault(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    found = inside(tmp_path, "a")
    assert found == tmp_path / "a"
    assert not found.is_file()
