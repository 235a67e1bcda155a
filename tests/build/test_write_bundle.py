"""A bundle is written wholly or not at all, with digests of everything and of its parents."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx_ir as ir
import pytest
from safetensors.numpy import load_file

from quad.build.smoke import SmokeResult
from quad.build.write_bundle import BundleParts, rom_bytes, write_bundle
from quad.compile import artifact
from quad.compile.artifact import FileArtifact, OnnxArtifact, graph_digest
from quad.core.digests import file_digest
from quad.core.errors import BackendError, InputError
from quad.core.manifest import AdapterManifest, Component
from quad.core.padding import trim
from quad.core.profile import GroupRanges, Profile
from quad.core.slots import Slot, SlotTable
from quad.model.base.open import Base
from quad.runtime.adapters.packed import PackedAdapter
from quad.runtime.adapters.store import AdapterStore
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
    slots = SlotTable((Slot(path="conv_in", kind="linear", in_features=2, out_features=3, rank=4, dtype="int16"),))
    adapter = PackedAdapter(
        name="ink", tensors={name: np.ones(shape, np.int16) for name, shape in slots.input_shapes().items()}, rank=3, source="f00d"
    )
    graphs = {name: OnnxArtifact(model=graph(), placement={"nodes": 1}) for name in COMPONENTS}
    return BundleParts(
        name="phone",
        base=base,
        target="cpu",
        precision="w8a16",
        engines=("ort",),
        slots=slots,
        profile=Profile(encodings={}),
        artifacts=graphs,
        adapters=(adapter,),
    )


def test_a_written_bundle_opens_and_every_file_is_listed(parts: BundleParts, tmp_path: Path) -> None:
    manifest = write_bundle(parts, tmp_path / "phone")
    bundle = open_bundle(tmp_path / "phone")
    assert bundle.manifest == manifest
    on_disk = {p.relative_to(bundle.root).as_posix() for p in bundle.root.rglob("*") if p.is_file()}
    assert on_disk == {*manifest.files, "bundle.json"}
    assert manifest.parents["base"] == parts.base.digest
    sizes = rom_bytes(manifest)
    assert sizes["shared"] + sizes["adapters"]["ink"] == sum(entry.size_bytes for entry in manifest.files.values())


def test_groups_of_adapters_have_a_graph_each_over_the_same_weights(parts: BundleParts, tmp_path: Path) -> None:
    profile = Profile(encodings={}, groups=(GroupRanges(encodings={}, mode="anchor"),))
    artifacts = {**parts.artifacts, "unet.group-2": OnnxArtifact(model=graph(), placement={"nodes": 1})}
    loud = replace(parts.adapters[0], name="loud", group=1)
    grouped = replace(parts, profile=profile, artifacts=artifacts, adapters=(*parts.adapters, loud))
    alone = write_bundle(replace(parts, profile=Profile(encodings={})), tmp_path / "alone")
    tried: dict[str, Path] = {}

    def check(_: Path, files: Mapping[str, Path]) -> SmokeResult:
        tried.update(files)
        return SmokeResult()

    grouped = replace(grouped, artifacts={name: OnnxArtifact(model=graph(), placement={"nodes": 1}) for name in artifacts})
    manifest = write_bundle(grouped, tmp_path / "phone", check)
    assert {name: file.name for name, file in tried.items() if name not in COMPONENTS} == {"unet.group-2": "model.group-2.onnx"}
    assert manifest.components["unet"].files == ("unet/model.onnx", "unet/model.group-2.onnx", "unet/model.onnx.data")
    assert manifest.parents["graph"] != alone.parents["graph"]
    bundle = open_bundle(tmp_path / "phone")
    manifests = {name: AdapterStore(bundle).manifest(name) for name in ("ink", "loud")}
    assert [manifest.group for manifest in manifests.values()] == [msgspec.UNSET, 1]
    added = sum(entry.size_bytes for name, entry in manifest.files.items() if name.startswith("unet/"))
    assert added < 2 * alone.files["unet/model.onnx"].size_bytes


def test_adapters_lie_there_at_their_own_ranks_with_the_weight_they_can_have(parts: BundleParts, tmp_path: Path) -> None:
    a, b = np.zeros((4, 2), np.int16), np.zeros((3, 4), np.int16)
    a[:3], b[:, :2] = 7, [-20000, 500]
    own = replace(parts.adapters[0], tensors=trim({"conv_in.lora_A": a, "conv_in.lora_B": b}, parts.slots))
    floats = SlotTable((Slot(path="conv_in", kind="linear", in_features=2, out_features=3, rank=4),))
    tensors = {name: values.astype(np.float32) for name, values in own.tensors.items()}
    for folder, some in (("phone", parts), ("floats", replace(parts, slots=floats))):
        write_bundle(replace(some, adapters=(own if some is parts else replace(own, tensors=tensors),)), tmp_path / folder)
    said = msgspec.json.decode((tmp_path / "phone/adapters/ink/adapter.json").read_bytes(), type=AdapterManifest)
    kept = load_file(tmp_path / "phone/adapters/ink/adapter.safetensors")
    assert {name: values.shape for name, values in kept.items()} == {"conv_in.lora_A": (3, 2), "conv_in.lora_B": (3, 3)}
    assert said.size_bytes == (tmp_path / "phone/adapters/ink/adapter.safetensors").stat().st_size
    assert said.headroom == 32767 / 20000
    assert b"headroom" not in (tmp_path / "floats/adapters/ink/adapter.json").read_bytes()


def test_an_adapter_of_zeros_has_the_bits_that_it_is_read_with(parts: BundleParts, tmp_path: Path) -> None:
    write_bundle(replace(parts, adapters=(replace(parts.adapters[0], tensors={}),)), tmp_path / "phone")
    said = msgspec.json.decode((tmp_path / "phone/adapters/ink/adapter.json").read_bytes(), type=AdapterManifest)
    assert (said.bits, said.headroom) == (16, msgspec.UNSET)
    assert all(not values.any() for values in AdapterStore(open_bundle(tmp_path / "phone")).buffers("ink").values())


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


@pytest.mark.parametrize("step", ["compile.artifact.ir.save", "build.write_bundle.write_bytes"])
def test_a_full_disk_leaves_nothing(parts: BundleParts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(f"quad.{step}", full)
    with pytest.raises(BackendError, match="disk full"):
        write_bundle(parts, tmp_path / "phone")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_check_leaves_what_was_there(parts: BundleParts, tmp_path: Path) -> None:
    first = write_bundle(parts, tmp_path / "phone")

    def fail(_: Path, graphs: Mapping[str, Path]) -> SmokeResult:
        assert {name: graph.is_file() for name, graph in graphs.items()} == dict.fromkeys(parts.artifacts, True)
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
    compiled = FileArtifact(source=source, placement={"nodes": 1}, agreement_db={})
    written = compiled.write(tmp_path / "unet")
    assert written == Component("unet/model.onnx", ("unet/model_qnn.bin",))
    identified = msgspec.structs.replace(written, identity="of what was compiled")
    assert graph_digest(identified, str) == "of what was compiled" != graph_digest(written, str)
    shutil.rmtree(tmp_path / "unet")
    monkeypatch.setattr(os, "link", full)  # another disk, or none that knows links
    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(BackendError, match=r"phone: cannot write \(disk full\); nothing was written"):
        write_bundle(replace(parts, artifacts={**parts.artifacts, "unet": compiled}), tmp_path / "phone")
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
