"""A file that may be somebody else's: what is read of it belongs to one state, and never to the file as it is by now."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from quad.core.errors import InputError
from quad.core.storage.header import BITS, Malformed, read_header
from quad.core.storage.stable_file import StableFile
from quad.core.storage.tensor_file import copy_tensors, open_header

DATA = bytes(range(256)) * 16


def _written(path: Path) -> None:
    with path.open("r+b") as stream:
        stream.write(b"!")
    os.utime(path, ns=(0, 0))  # a clock that has not moved on would hide it


def _replaced(path: Path) -> None:
    path.with_name("new").write_bytes(DATA)
    path.with_name("new").replace(path)


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (lambda path: os.truncate(path, 100), "it was cut"),
    "emptied": (lambda path: os.truncate(path, 0), "it was cut"),
    "written to": (_written, "it was written to or replaced"),
    "replaced": (_replaced, "it was written to or replaced"),
    "longer": (lambda path: os.truncate(path, 5000), "it was written to or replaced"),
    "gone": (Path.unlink, "it was gone"),
}


@pytest.fixture
def file(tmp_path: Path) -> StableFile:
    (tmp_path / "x").write_bytes(DATA)
    return StableFile.of(tmp_path / "x")


def test_any_part_of_it_is_read(file: StableFile) -> None:
    assert (file.read(0, file.size).tobytes(), file.read(255, 3).tobytes(), file.read(9, 0).size) == (DATA, b"\xff\x00\x01", 0)
    assert file.sha256() == hashlib.sha256(DATA).hexdigest()


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_told_wherever_it_is_read(file: StableFile, change: str) -> None:
    make, says = CHANGES[change]
    make(file.path)
    for read in (lambda: file.read(0, 10), lambda: file.read(200, 4), file.sha256):
        with pytest.raises(InputError, match=rf"x: expected a file that stays as it is while it is read, found {says}; call again"):
            read()


def test_a_copy_does_not_change_with_its_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(save({"a": np.ones(99, np.int16)}, {"who": "ink"}))
    copied = copy_tensors(path)
    with path.open("r+b") as stream:
        stream.seek(-198, os.SEEK_END)
        stream.write(bytes(198))
    assert (copied.tensors["a"] == 1).all()
    assert not copied.tensors["a"].flags.writeable
    assert open_header(path).metadata == copied.metadata == {"who": "ink"}


@pytest.mark.parametrize("kind", BITS)
def test_every_type_of_the_format_counts_its_bits(kind: str) -> None:
    header = f'{{"a":{{"dtype":"{kind}","shape":[8,2],"data_offsets":[0,{2 * BITS[kind]}]}}}}'.encode()
    data = memoryview(len(header).to_bytes(8, "little") + header + bytes(2 * BITS[kind]))
    found = read_header(lambda start, size: data[start : start + size], len(data))
    assert (found.entries["a"].dtype, found.start) == (kind, 8 + len(header))
    with pytest.raises(Malformed):
        read_header(lambda start, size: data[start : start + size], len(data) - 1)


@pytest.mark.parametrize("length", [0, 4000])
@pytest.mark.parametrize(
    ("start", "says"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "a git-lfs pointer in place of the file"),
        (b"<!DOCTYPE html>", "a web page in place of the file"),
        (b'{"error": "no"}', "a JSON file"),
        (b"GGUF\x03\x00\x00\x00", "a GGUF file"),
        (b"\x89PNG\r\n\x1a\n", "a PNG picture"),
        (b"PK\x03\x04\x00\x00\x08\x08", "a zip archive, as torch.save writes one"),
        (b"\x80\x02\x8a\x0al\xfc\x9cF", "a pickled file"),
        (b"\x1f\x8b\x08\x00\x12\x34\x56\x67", "a gzip archive"),
    ],
)
def test_what_lies_in_the_file_s_place_is_named(start: bytes, says: str, length: int) -> None:
    data = memoryview(start + bytes(length))
    with pytest.raises(Malformed, match=says):
        read_header(lambda first, size: data[first : first + size], len(data))
