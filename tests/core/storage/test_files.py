"""A full disk is one line that names the place that is full, and what was begun is gone."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from quad.core.errors import BackendError
from quad.core.storage.files import inside, new_directory, scratch_directory, writing_to
from tests.conftest import Spy

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


def _old(place: Path) -> Path:
    place.mkdir()
    (place / "bundle.json").write_text("old")
    return place


def test_what_is_replaced_stays_when_the_new_one_cannot_take_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    final, renames = _old(tmp_path / "phone"), iter([None, FULL])
    real = os.replace

    def replace(source: Path, place: Path) -> None:
        if (error := next(renames, None)) is not None:
            raise error
        real(source, place)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(BackendError, match="disk full"), new_directory(final, "bundle.json") as stage:
        (stage / "bundle.json").write_text("new")
    assert (final / "bundle.json").read_text() == "old"
    assert list(tmp_path.iterdir()) == [final]


def test_nothing_of_what_is_replaced_goes_before_the_new_one_is_there(tmp_path: Path, spy: Spy) -> None:
    final = _old(tmp_path / "phone")
    contents = spy(shutil, "rmtree", lambda *_args, **_options: (final / "bundle.json").read_text())
    with new_directory(final, "bundle.json") as stage:
        (stage / "bundle.json").write_text("new")
    assert set(contents) == {"new"}
    assert list(tmp_path.iterdir()) == [final]


def test_a_link_to_a_directory_goes_on_to_lead_there(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(_old(tmp_path / "phone"))
    with new_directory(tmp_path / "link", "bundle.json") as stage:
        (stage / "bundle.json").write_text("new")
    assert (tmp_path / "phone/bundle.json").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "phone"]


def test_links_in_a_circle_are_nothing_and_no_fault(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    found = inside(tmp_path, "a")
    assert found == tmp_path / "a"
    assert not found.is_file()
