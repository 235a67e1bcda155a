"""A bundle is written wholly or not at all, with digests of everything and of its parents."""

from __future__ import annotations

import errno
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from quad.compile import artifact
from quad.compile.artifact import CompiledArtifact, OnnxArtifact
from quad.compile.write import BundleParts, PackedAdapter, rom_bytes, write_bundle
from quad.core.digests import file_digest
from quad.core.errors import BackendError, InputError
from quad.core.manifest import Component
from quad.core.profile import Profile
from quad.core.slots import Slot, SlotTable
from quad.model.base import Base
from quad.runtime.bundle import COMPONENTS, open_bundle


def graph() -> ir.Model:
    """y = x + 1, with the one as a weight of 4 kB."""
    one = ir.Value(name="one", const_value=ir.tensor(np.ones(1000, np.float32), name="one"), shape=ir.Shape((1000,)))
    x = ir.Value(name="x", shape=ir.Shape((1000,)), type=ir.TensorType(ir.DataType.FLOAT))
    add = ir.node("Add", [x, one])
    add.outputs[0].name = "y"
    add.outputs[0].shape, add.outputs[0].dtype = x.shape, ir.DataType.FLOAT
    return ir.Model(ir.Graph([x], add.outputs, nodes=[add], initializers=[one], opset_imports={"": 21}, name="g"), ir_version=10)


@pytest.fixture
def parts(base: Base) -> BundleParts:
    slots = SlotTable((Slot("conv_in", "linear", 2, 3, 4, "int16"),))
    adapter = PackedAdapter("ink", {name: np.ones(shape, np.int16) for name, shape in slots.input_shapes().items()}, 3, "f00d")
    graphs = {name: OnnxArtifact(graph(), {"nodes": 1}) for name in COMPONENTS}
    return BundleParts("phone", base, "cpu", "w8a16", ("ort",), slots, Profile({}), graphs, (adapter,), {})


def test_a_written_bundle_opens_and_every_file_is_listed(parts: BundleParts, tmp_path: Path) -> None:
    manifest = write_bundle(parts, tmp_path / "phone")
    bundle = open_bundle(tmp_path / "phone")
    assert bundle.manifest == manifest
    on_disk = {p.relative_to(bundle.root).as_posix() for p in bundle.root.rglob("*") if p.is_file()}
    assert on_disk == {*manifest.files, "bundle.json"}
    assert manifest.parents["base"] == parts.base.digest
    sizes = rom_bytes(manifest, parts.adapters)
    assert sizes["shared"] + sizes["adapters"]["ink"] == sum(entry.size_bytes for entry in manifest.files.values())


def test_the_same_parts_give_the_same_bytes(parts: BundleParts, tmp_path: Path) -> None:
    write_bundle(parts, tmp_path / "a")
    write_bundle(parts, tmp_path / "b")
    for path in (tmp_path / "a").rglob("*.*"):
        assert file_digest(path) == file_digest(tmp_path / "b" / path.relative_to(tmp_path / "a")), path


def test_large_graphs_keep_their_weights_beside_them(parts: BundleParts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifact, "EXTERNAL_DATA_BYTES", 1000)
    manifest = write_bundle(parts, tmp_path / "phone")
    assert manifest.components["unet"].data_files == ("unet/model.onnx.data",)
    assert manifest.files["unet/model.onnx"].size_bytes < 1000 <= manifest.files["unet/model.onnx.data"].size_bytes
    assert open_bundle(tmp_path / "phone").manifest == manifest


@pytest.mark.parametrize("step", ["artifact.ir.save", "write.shutil.copyfile", "write.write_bytes"])
def test_a_full_disk_leaves_nothing(parts: BundleParts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(f"quad.compile.{step}", full)
    with pytest.raises(BackendError, match="disk full"):
        write_bundle(parts, tmp_path / "phone")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_check_leaves_what_was_there(parts: BundleParts, tmp_path: Path) -> None:
    first = write_bundle(parts, tmp_path / "phone")

    def fail(_: Path) -> None:
        raise BackendError("smoke run of unet with base: expected 0.1, found 0.9; report it")

    with pytest.raises(BackendError, match="smoke run"):
        write_bundle(replace(parts, name="other"), tmp_path / "phone", fail)
    assert open_bundle(tmp_path / "phone").manifest == first
    assert [path.name for path in tmp_path.iterdir()] == ["phone"]


def test_a_directory_that_is_no_bundle_is_not_replaced(parts: BundleParts, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"meow")
    with pytest.raises(InputError, match="something else"):
        write_bundle(parts, tmp_path / "photos")
    assert (tmp_path / "photos" / "cat.png").read_bytes() == b"meow"


def test_a_full_disk_under_a_binary_is_one_line_too(parts: BundleParts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    source = tmp_path / "made"
    source.mkdir()
    for name in ("model.onnx", "model_qnn.bin"):
        (source / name).write_bytes(b"00")
    compiled = CompiledArtifact(source, {"nodes": 1}, {})
    assert compiled.write(tmp_path / "unet") == Component("unet/model.onnx", ("unet/model_qnn.bin",))
    shutil.rmtree(tmp_path / "unet")
    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(BackendError, match=r"phone: cannot write \(disk full\); nothing was written"):
        write_bundle(replace(parts, artifacts={**parts.artifacts, "unet": compiled}), tmp_path / "phone")
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
