"""A directory is replaced whole: the old one or the new one is at the name, whatever fails and whoever else writes there."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from quad.core.errors import BackendError, InputError
from quad.core.storage import directories
from quad.core.storage.directories import new_directory
from quad.core.storage.exchange import exchange
from quad.core.storage.files import writing_to
from tests.conftest import Spy

FULL = OSError(errno.ENOSPC, "No space left on device")
MARKER = "bundle.json"


def _cannot(_one: Path, _other: Path) -> bool:
    return False


@pytest.fixture(params=[exchange, _cannot], ids=["exchange", "two renames"])
def swap(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, Path], bool]:
    """The system's own exchange of two names, and a system without one."""
    swap: Callable[[Path, Path], bool] = request.param
    monkeypatch.setattr(directories, "exchange", swap)
    return swap


def old_bundle(place: Path) -> Path:
    place.mkdir()
    (place / MARKER).write_text("old")
    return place


def write(final: Path, text: str = "new") -> None:
    with new_directory(final, MARKER) as stage:
        (stage / MARKER).write_text(text)


def test_two_names_are_exchanged_in_one_step(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / MARKER).write_text(name)
    if not exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("a system that cannot")
    assert [(tmp_path / name / MARKER).read_text() for name in ("a", "b")] == ["b", "a"]
    with pytest.raises(FileNotFoundError):
        exchange(tmp_path / "a", tmp_path / "nowhere")


def test_a_file_that_cannot_be_written_is_named_where_it_was_to_lie(tmp_path: Path) -> None:
    final = old_bundle(tmp_path / "phone")
    with pytest.raises(BackendError, match="cannot write") as told, new_directory(final, MARKER) as stage, writing_to(stage / "unet.onnx"):
        raise FULL
    assert str(told.value).startswith(f"{final / 'unet.onnx'}: cannot write (disk full)")
    assert (final / MARKER).read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["phone"]


@pytest.mark.usefixtures("swap")
def test_what_is_replaced_stays_when_the_new_one_cannot_take_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    final, real = old_bundle(tmp_path / "phone"), os.replace

    def full(*_: Path) -> None:
        raise FULL

    def replace(source: Path, place: Path) -> None:
        if place == final and source.suffix == ".part":
            raise FULL
        real(source, place)

    if directories.exchange is exchange:
        monkeypatch.setattr(directories, "exchange", full)
    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(BackendError, match="disk full"):
        write(final)
    assert (final / MARKER).read_text() == "old"
    assert list(tmp_path.iterdir()) == [final]


@pytest.mark.usefixtures("swap")
def test_nothing_of_what_is_replaced_goes_before_the_new_one_is_there(tmp_path: Path, spy: Spy) -> None:
    final = old_bundle(tmp_path / "phone")
    final.chmod(0o750)
    contents = spy(shutil, "rmtree", lambda *_args, **_options: (final / MARKER).read_text())
    write(final)
    assert set(contents) == {"new"}
    assert list(tmp_path.iterdir()) == [final]
    assert final.stat().st_mode & 0o777 == 0o750


def test_the_old_one_is_at_the_name_until_the_new_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an exchange no other step touches the name."""
    if not exchange(old_bundle(tmp_path / "a"), old_bundle(tmp_path / "b")):
        pytest.skip("a system that cannot")
    final = tmp_path / "a"

    def no_rename(*_: Path) -> None:
        raise AssertionError("a rename")

    monkeypatch.setattr(os, "replace", no_rename)
    write(final)
    assert (final / MARKER).read_text() == "new"


@pytest.mark.usefixtures("swap")
def test_a_link_to_a_directory_goes_on_to_lead_there(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(old_bundle(tmp_path / "phone"))
    write(tmp_path / "link")
    assert (tmp_path / "phone" / MARKER).read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "phone"]


def test_links_in_a_circle_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    circle = tmp_path / "circle"
    circle.symlink_to(circle)
    with pytest.raises(BackendError, match="Too many levels of symbolic links"), new_directory(circle, MARKER):
        pytest.fail("work was done for a place that nothing can be written to")
    assert list(tmp_path.iterdir()) == [circle]


def test_what_came_to_the_name_meanwhile_is_refused_and_stays(tmp_path: Path) -> None:
    final = old_bundle(tmp_path / "phone")

    def someone_else(stage: Path) -> None:
        (stage / MARKER).write_text("new")
        shutil.rmtree(final)
        final.mkdir()
        (final / "cat.png").write_bytes(b"meow")

    with pytest.raises(InputError, match=rf"{final}: expected a new directory or one with {MARKER}"), new_directory(final, MARKER) as stage:
        someone_else(stage)
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == ["phone", "phone/cat.png"]


@pytest.mark.usefixtures("swap")
def test_two_writers_of_one_name_end_well_and_the_later_one_stays(tmp_path: Path) -> None:
    final = old_bundle(tmp_path / "phone")
    with new_directory(final, MARKER) as stage:
        (stage / MARKER).write_text("later")
        write(final, "earlier")  # which must not take the other one's directory for a dead one's
        assert (final / MARKER).read_text() == "earlier"
    assert (final / MARKER).read_text() == "later"
    assert list(tmp_path.iterdir()) == [final]


def test_what_dead_writers_left_goes_and_nothing_else(tmp_path: Path) -> None:
    final = old_bundle(tmp_path / "phone")
    left = [f".phone.{'0' * 16}.part", f".phone.{'1' * 16}.old"]
    others = [".phone.build", ".phone.part", f".phone.{'0' * 15}.part", f".tablet.{'0' * 16}.part", f"phone.{'0' * 16}.part"]
    for name in (*left, *others):
        old_bundle(tmp_path / name)
    write(final)
    assert {path.name for path in tmp_path.iterdir()} == {"phone", *others}
    assert (final / MARKER).read_text() == "new"


def test_what_a_killed_writer_had_put_aside_comes_back(tmp_path: Path) -> None:
    """Where names cannot be exchanged, and it was killed between two renames."""
    old_bundle(tmp_path / f".phone.{'1' * 16}.old")
    with pytest.raises(InputError, match="changed its mind"), new_directory(tmp_path / "phone", MARKER):
        raise InputError("changed its mind")
    assert (tmp_path / "phone" / MARKER).read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["phone"]
