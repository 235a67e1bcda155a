"""Pointers to installed packs: one rename switches, and a pointer that does not name a whole pack is refused."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from quad.core.digests import canonical_json
from quad.core.errors import BackendError, UsageError, VerificationError
from quad.core.storage.files import directory_lock
from quad.core.storage.install_pointers import (
    Installed,
    Version,
    pack_path,
    pointer_path,
    read_installed,
    read_pointers,
    remove_pointer,
    store_beside,
    write_pointer,
)

A, B = "a" * 64, "b" * 64


def _pack(store: Path, sha256: str, data: bytes) -> Version:
    path = pack_path(store, sha256)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return Version(1, sha256, len(data))


def test_installed_adapters_come_sorted_with_the_pack_that_runs(tmp_path: Path) -> None:
    first, second = _pack(tmp_path, A, b"one"), _pack(tmp_path, B, b"three")
    write_pointer(tmp_path, Installed("zebra", first))
    write_pointer(tmp_path, Installed("ink", second, first))
    assert list(read_installed(tmp_path).items()) == [("ink", pack_path(tmp_path, B)), ("zebra", pack_path(tmp_path, A))]
    assert read_pointers(tmp_path)["ink"].previous == first


def test_a_switch_leaves_the_pointer_alone_in_its_directory(tmp_path: Path) -> None:
    first, second = _pack(tmp_path, A, b"one"), _pack(tmp_path, B, b"three")
    for version in (first, second):
        write_pointer(tmp_path, Installed("ink", version))
    assert [path.name for path in (tmp_path / "installed").iterdir()] == ["ink.json"]
    assert read_installed(tmp_path) == {"ink": pack_path(tmp_path, B)}
    remove_pointer(tmp_path, "ink")
    assert read_installed(tmp_path) == {}


def test_no_store_holds_no_adapter_and_it_lies_beside_the_bundle(tmp_path: Path) -> None:
    assert read_installed(tmp_path / "nowhere") == {}
    assert store_beside(tmp_path / "phone") == tmp_path / "phone.adapters"
    assert store_beside(tmp_path / "phone/files/..") == tmp_path / "phone.adapters"


def test_a_file_that_a_killed_switch_left_is_no_pointer(tmp_path: Path) -> None:
    write_pointer(tmp_path, Installed("ink", _pack(tmp_path, A, b"one")))
    (tmp_path / "installed/.sky.json.part").write_bytes(b"{")
    (tmp_path / "installed/.sky.json").write_bytes(b"{")
    assert list(read_installed(tmp_path)) == ["ink"]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"\xff",
        canonical_json(Installed("sky", Version(1, A, 3))),
        canonical_json({"name": "ink", "current": {"version": 1, "sha256": "../../x", "size_bytes": 3}, "previous": None}),
        canonical_json({"name": "ink", "current": {"version": 0, "sha256": A, "size_bytes": 3}, "previous": None}),
        canonical_json({"name": "ink", "previous": None}),
        canonical_json(msgspec.to_builtins(Installed("ink", Version(1, A, 3))) | {"more": 1}),
    ],
)
def test_a_damaged_pointer_is_refused(tmp_path: Path, text: bytes) -> None:
    _pack(tmp_path, A, b"one")
    path = pointer_path(tmp_path, "ink")
    path.parent.mkdir()
    path.write_bytes(text)
    with pytest.raises(VerificationError, match=r"ink\.json: expected a pointer .*; install the adapter again"):
        read_installed(tmp_path)


def test_a_pointer_to_a_pack_that_is_gone_or_cut_is_refused(tmp_path: Path) -> None:
    write_pointer(tmp_path, Installed("ink", _pack(tmp_path, A, b"one")))
    pack_path(tmp_path, A).write_bytes(b"on")
    with pytest.raises(VerificationError, match="of 'ink': expected a pack of 3 bytes, found 2 bytes"):
        read_installed(tmp_path)
    pack_path(tmp_path, A).unlink()
    with pytest.raises(VerificationError, match="found no such file"):
        read_installed(tmp_path)


def test_one_at_a_time_and_nothing_is_left_of_the_lock(tmp_path: Path) -> None:
    taken = UsageError("taken")
    with directory_lock(tmp_path, taken), pytest.raises(UsageError, match="taken"), directory_lock(tmp_path, taken):
        pass
    with directory_lock(tmp_path, taken):
        assert not list(tmp_path.iterdir())


def test_a_pointer_that_cannot_be_read_is_not_called_damaged(tmp_path: Path) -> None:
    """Who calls it damaged removes it; this one may be sound."""
    pointer_path(tmp_path, "ink").mkdir(parents=True)
    with pytest.raises(BackendError, match=r"ink\.json: expected something that can be read, found Is a directory"):
        read_installed(tmp_path)
