"""Where a server is found: closed to others, taken once, left as it was, and cleared after a kill."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from quad.core.errors import BackendError, InputError, UsageError
from quad.serve.endpoint import own_directory, port_endpoint, remove_at_once, socket_endpoint, upload_name


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's runtime directory, with a name that is short enough for a socket's address."""
    with TemporaryDirectory(prefix="q") as name:
        monkeypatch.setenv("XDG_RUNTIME_DIR", name)
        yield Path(name)


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def _as_killed(folder: Path, stem: str) -> None:
    """What a server that was killed leaves."""
    folder.mkdir(mode=0o700, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(folder / stem))
    (folder / f"{stem}.lock").touch()
    if stem.startswith("tcp-"):
        (folder / f"{stem}.token").write_text("quad-old")
    (folder / f"{stem}.uploads").mkdir()
    (folder / f"{stem}.uploads" / upload_name()).touch()


def test_a_socket_is_its_owners_alone_and_gone_at_the_end(folder: Path) -> None:
    path = folder / "s"
    with socket_endpoint(path) as endpoint:
        assert stat.S_ISSOCK(path.lstat().st_mode)
        assert _mode(path) == 0o600
        with socket.socket(socket.AF_UNIX) as one:
            one.connect(str(path))
        endpoint.uploads.mkdir()
    assert not list(folder.iterdir())


def test_without_a_path_it_lies_in_the_users_own_directory(folder: Path) -> None:
    with socket_endpoint(None) as endpoint:
        assert endpoint.stem == folder / "quad" / "serve.sock"
        assert _mode(folder / "quad") == 0o700
    assert not list((folder / "quad").iterdir())


def test_a_directory_that_others_may_enter_is_refused(folder: Path) -> None:
    (folder / "quad").mkdir(mode=0o755)
    with pytest.raises(InputError, match="mode 0700"):
        own_directory()


def test_a_live_server_is_not_driven_out(folder: Path) -> None:
    path = folder / "s"
    with socket_endpoint(path):
        with pytest.raises(InputError, match="found a running one"), socket_endpoint(path):
            pass
        with socket.socket(socket.AF_UNIX) as one:
            one.connect(str(path))


def test_what_a_killed_server_left_is_removed(folder: Path) -> None:
    _as_killed(folder / "quad", "serve.sock")
    _as_killed(folder / "quad", "tcp-1234")
    with socket_endpoint(None) as endpoint:
        assert sorted(path.name for path in endpoint.stem.parent.iterdir()) == ["serve.sock", "serve.sock.lock"]


def test_a_sweep_leaves_the_living_alone(folder: Path) -> None:
    with port_endpoint(0, None) as first, socket_endpoint(None) as second, port_endpoint(0, None) as third:
        names = {path.name for path in first.stem.parent.iterdir()}
        assert {first.token_file.name, third.token_file.name, second.stem.name} <= names  # type: ignore[union-attr]
        assert first.token != third.token


def test_something_else_under_the_name_is_not_touched(folder: Path) -> None:
    path = folder / "s"
    path.write_text("mine")
    with pytest.raises(InputError, match="expected a socket, or nothing"), socket_endpoint(path):
        pass
    assert path.read_text() == "mine"
    assert [found.name for found in folder.iterdir()] == ["s"]


@pytest.mark.parametrize("name", ["s.token", "s.lock", "s.uploads/notes.txt", "s.uploads/my.qpack"])
def test_what_a_user_has_beside_the_socket_is_his(folder: Path, name: str) -> None:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    beside = {found.name for found in folder.iterdir()}
    with suppress(InputError), socket_endpoint(folder / "s"):
        assert name == "s.token"  # a socket has none
    assert path.read_text() == "mine"
    assert {found.name for found in folder.iterdir()} == beside


def test_a_link_in_the_place_of_uploads_is_not_followed(folder: Path) -> None:
    (folder / "mine").mkdir()
    (folder / "mine" / upload_name()).touch()
    (folder / "s.uploads").symlink_to(folder / "mine")
    with pytest.raises(InputError, match="packs that clients sent, or nothing"), socket_endpoint(folder / "s"):
        pass
    assert list((folder / "mine").iterdir())


def test_a_path_too_long_for_an_address_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at most 103 bytes"), socket_endpoint(tmp_path / ("s" * 104)):
        pass


def test_a_token_is_its_owners_alone_and_never_the_same(folder: Path) -> None:
    with port_endpoint(0, None) as endpoint:
        assert endpoint.token_file == folder / "quad" / f"tcp-{endpoint.port}.token"
        assert _mode(endpoint.token_file) == 0o600
        assert endpoint.token_file.read_text() == f"{endpoint.token}\n"
        assert len(endpoint.token or "") >= 43
        assert endpoint.listener.getsockname()[0] == "127.0.0.1"
    assert not list((folder / "quad").iterdir())


def test_a_token_file_replaces_an_older_token_and_nothing_else(folder: Path) -> None:
    file = folder / "token"
    file.write_text("quad-old\n")
    with port_endpoint(0, file) as endpoint:
        assert file.read_text() == f"{endpoint.token}\n"
    for make in (lambda: file.write_text("my notes"), lambda: os.symlink("/dev/null", file), file.mkdir):
        file.unlink(missing_ok=True)
        make()
        with pytest.raises(InputError, match="an older token"), port_endpoint(0, file):
            pass
    assert file.is_dir()


def test_a_token_file_is_its_owners_alone_whatever_lies_there_before(folder: Path) -> None:
    part = folder / ".token.part"
    part.touch(0o644)
    with part.open("rb") as open_before, port_endpoint(0, folder / "token") as endpoint:
        assert _mode(folder / "token") == 0o600
        assert (endpoint.token or "").encode() not in open_before.read()
    with port_endpoint(0, folder / "new" / "token"):
        assert _mode(folder / "new") & 0o700 == 0o700
    assert not part.exists()


def test_a_token_file_belongs_to_one_server(folder: Path) -> None:
    with port_endpoint(0, folder / "token") as endpoint:
        with pytest.raises(InputError, match="found a running one"), port_endpoint(0, folder / "token"):
            pass
        assert (folder / "token").read_text() == f"{endpoint.token}\n"
    assert not [path.name for path in folder.iterdir() if path.name != "quad"]


def test_a_token_file_in_the_users_own_directory_keeps_no_later_server_from_starting(folder: Path) -> None:
    own = own_directory()
    (own / "mine").write_text("quad-old")  # as a server leaves it that was killed
    (own / "mine.lock").touch()
    with socket_endpoint(None), port_endpoint(0, own / "mine") as endpoint:
        assert (own / "mine").read_text() == f"{endpoint.token}\n"


def test_a_taken_port_is_one_line(folder: Path) -> None:
    with (
        port_endpoint(0, None) as endpoint,
        pytest.raises(BackendError, match=f"port {endpoint.port}: expected a free port"),
        port_endpoint(endpoint.port, None),
    ):
        pass


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_no_part_of_a_token(folder: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if step == "write":
        monkeypatch.setattr("secrets.token_urlsafe", lambda _: "\ud800")  # stands for what cannot be written
    else:
        monkeypatch.setattr(os, step, full)
    with pytest.raises((BackendError, UnicodeEncodeError)), port_endpoint(0, None):
        pass
    monkeypatch.undo()
    assert [path for path in (folder / "quad").iterdir() if path.suffix != ".lock"] == []


def test_what_is_removed_at_once_is_all_that_a_server_has_written(folder: Path) -> None:
    with port_endpoint(0, folder / "token") as endpoint:
        endpoint.uploads.mkdir()
        (endpoint.uploads / upload_name()).touch()
        remove_at_once(endpoint)
        assert [path for path in folder.rglob("*") if path.is_file()] == []
