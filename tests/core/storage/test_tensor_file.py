"""Mapped files: what safetensors writes is read the same, nothing else is read, and a file is known again until it is written to."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from quad.core.errors import InputError, VerificationError
from quad.core.storage.stable_file import SETTLED_NS, Identity
from quad.core.storage.tensor_file import DTYPES, copy_tensors, map_content, map_tensors, open_header

Tensors = dict[str, NDArray[Any]]
TYPES = sorted({kind.str for kind in DTYPES.values()})
TENSORS = {"b.lora_A": np.arange(6, dtype=np.int16).reshape(2, 3), "a.lora_B": np.ones((3, 2), np.int8), "c": np.float32([0.5])}
WHOLE = save(TENSORS, {"who": "ink"})


@st.composite
def files(draw: st.DrawFn) -> tuple[Tensors, dict[str, str]]:
    names = draw(
        st.lists(st.text(st.characters(codec="utf-8"), max_size=8).filter(lambda name: name != "__metadata__"), max_size=5, unique=True)
    )
    shapes = array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3)
    tensors: Tensors = {}
    for name in names:
        shape, kind = draw(shapes), draw(st.sampled_from(TYPES))
        tensors[name] = np.frombuffer(draw(st.binary(min_size=999, max_size=999)), kind, int(np.prod(shape))).reshape(shape)
    return tensors, draw(
        st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=5), st.text(st.characters(codec="utf-8")), max_size=2)
    )


def same(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape, found[name].tobytes()) == (array.dtype, array.shape, array.tobytes())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files())
def test_what_safetensors_writes_is_read_the_same(tmp_path: Path, written: tuple[Tensors, dict[str, str]]) -> None:
    tensors, metadata = written
    (tmp_path / "x").write_bytes(save(tensors, metadata or None))  # the library writes no JSON for metadata without entries
    file = map_tensors(tmp_path / "x")
    same(file.tensors, tensors)
    assert file.metadata == open_header(tmp_path / "x").metadata == metadata
    same(copy_tensors(tmp_path / "x").tensors, tensors)
    assert not any(array.flags.writeable for array in file.tensors.values())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(st.lists(st.tuples(st.integers(0, 8 + int.from_bytes(WHOLE[:8], "little")), st.integers(0, 255)), min_size=1, max_size=3))
def test_a_header_that_safetensors_refuses_is_refused(tmp_path: Path, changes: list[tuple[int, int]]) -> None:
    data = bytearray(WHOLE)
    for place, byte in changes:
        data[place] = byte
    (tmp_path / "x").write_bytes(data)
    try:
        found = map_tensors(tmp_path / "x").tensors
    except VerificationError:
        return
    try:
        same(found, load(bytes(data)))
    except SafetensorError as error:
        pytest.fail(f"safetensors says {error}")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.permutations([(0, 12), (12, 18), (18, 22)]), st.integers(-1, 1))
def test_each_byte_belongs_to_one_tensor(tmp_path: Path, places: list[tuple[int, int]], more: int) -> None:
    """Types and sizes fit their tensors at exactly one order of places, and the file has no byte more or less."""
    sizes = {"a": ("I16", [2, 3], 12), "b": ("I8", [6], 6), "c": ("F32", [1], 4)}
    entries = {
        name: {"dtype": kind, "shape": shape, "data_offsets": place}
        for (name, (kind, shape, _)), place in zip(sizes.items(), places, strict=True)
    }
    header = json.dumps(entries).encode()
    (tmp_path / "x").write_bytes(len(header).to_bytes(8, "little") + header + bytes(22 + more))
    if more == 0 and all(end - begin == size for (_, _, size), (begin, end) in zip(sizes.values(), places, strict=True)):
        assert len(map_tensors(tmp_path / "x").tensors) == 3
    else:
        with pytest.raises(VerificationError, match="a safetensors file"):
            map_tensors(tmp_path / "x")


@pytest.mark.parametrize(
    "entry",
    [{"dtype": "I8", "shape": [1] * 9, "data_offsets": [0, 1]}, {"dtype": "I8", "shape": [0, 2**60, 2**60], "data_offsets": [0, 0]}],
    ids=["axes without end", "nothing, and too much of it"],
)
def test_shapes_that_numpy_does_not_know(tmp_path: Path, entry: dict[str, object]) -> None:
    header = json.dumps({"a": entry}).encode()
    (tmp_path / "x").write_bytes(len(header).to_bytes(8, "little") + header + bytes(entry["data_offsets"][1]))  # type: ignore[index]
    with pytest.raises(VerificationError, match="a safetensors file"):
        map_tensors(tmp_path / "x")


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a file that can be read, found No such file"):
        map_tensors(tmp_path / "x")


def test_arrays_outlive_the_file_s_name_and_its_successor(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(WHOLE)
    file = map_tensors(path)
    file.content.touch()
    (tmp_path / "y").write_bytes(save({"other": np.zeros(9)}))
    os.replace(tmp_path / "y", path)
    same(file.tensors, TENSORS)
    assert map_content(path).identity != file.content.identity
    path.unlink()
    same(file.tensors, TENSORS)
    file.content.read_ahead()  # a hint: nothing is at that name to be read


@pytest.mark.parametrize("change", ["written", "replaced", "longer", "set back"])
def test_an_identity_does_not_survive_a_change(tmp_path: Path, change: str) -> None:
    path = tmp_path / "x"
    path.write_bytes(WHOLE)
    os.utime(path, ns=(0, 0))
    before = map_content(path).identity
    assert map_content(path).identity == before
    if change == "replaced":
        (tmp_path / "y").write_bytes(WHOLE)
        os.replace(tmp_path / "y", path)
    elif change == "longer":
        with path.open("ab") as stream:
            stream.write(b"\0")
        with pytest.raises(VerificationError):
            map_tensors(path)
    else:
        path.write_bytes(WHOLE[::-1])
    if change == "set back":
        os.utime(path, ns=(0, 0))  # the time of writing can be set, that of the change cannot
    assert Identity.of(path.stat()) != before


@given(st.integers(0, 2**62), st.integers(0, 2**62), st.integers(0, 2**62))
def test_a_fresh_change_could_hide_another(modified: int, changed: int, now: int) -> None:
    assert Identity(device=1, inode=2, size_bytes=3, modified_ns=modified, changed_ns=changed).settled(now) == (
        now - modified > SETTLED_NS and now - changed > SETTLED_NS
    )
