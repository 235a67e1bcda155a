"""What the system does not let be read is an error; what is not there is not there."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from quad.core.digests import file_digest
from quad.core.errors import BackendError
from quad.core.storage.reading import entry_names, file_status, files_below, is_directory, is_file
from tests.core.storage.hiding import hide


def test_what_is_there_is_told_and_what_is_not_there_is_not(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "a").write_text("text")
    (tmp_path / "gone").symlink_to("nowhere")
    assert entry_names(tmp_path) == ["a", "b", "gone"]
    assert entry_names(tmp_path / "nowhere") == []
    assert (is_file(tmp_path / "a"), is_directory(tmp_path / "a")) == (True, False)
    assert (is_file(tmp_path / "b"), is_directory(tmp_path / "b")) == (False, True)
    (tmp_path / "b/c").write_text("text")
    assert files_below(tmp_path) == [tmp_path / "a", tmp_path / "b/c"]
    for nothing in ("gone", "nowhere", "a/below a file"):
        assert file_status(tmp_path / nothing) is None


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
@pytest.mark.parametrize("look", [entry_names, files_below, lambda path: is_file(path / "x"), lambda path: file_digest(path / "x")])
def test_what_cannot_be_read_is_an_error_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look: Callable[[Path], object], number: int
) -> None:
    (tmp_path / "x").write_text("text")
    hide(monkeypatch, tmp_path, number)
    with pytest.raises(
        BackendError, match=rf"^{tmp_path}.*: expected something that can be read, found (Permission|Input).*nothing was changed"
    ):
        look(tmp_path)
