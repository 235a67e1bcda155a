"""Graphs of several sizes and groups over one file of weights: each still computes what it did, and a weight lies on the disk once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn

from quad.compile import artifact
from quad.compile.artifact import FileArtifact, OnnxArtifact
from quad.compile.export import GraphSpec, export_graph
from quad.compile.placement.qdq import place_float
from quad.compile.shared_weights import WEIGHTS_FILE, write_variants
from quad.core.picture_size import PictureSize
from quad.runtime.engines.engine import open_engine

SIZES = (PictureSize(8, 8), PictureSize(8, 16), PictureSize(16, 8))


class _Network(nn.Module):
    """A weight, a table that hangs on the size, and shapes that do; the gain is one group's."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = gain
        self.conv, self.linear = nn.Conv2d(3, 32, 3, padding=1), nn.Linear(32, 32)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        rows, columns = image.shape[2:]
        places = torch.arange(rows * columns).reshape(1, 1, rows, columns) / (rows * columns)
        hidden = self.linear((self.conv(image) + places).flatten(2).transpose(1, 2))
        return (self.gain * hidden).transpose(1, 2).reshape(1, 32, rows, columns).tanh()


def _artifact(network: nn.Module, size: PictureSize) -> OnnxArtifact:
    image = torch.randn(1, 3, *size.grid, generator=torch.Generator().manual_seed(0))
    graph = export_graph(network, GraphSpec(component="vae_encoder", inputs={"image": image}, output="latent"))
    return OnnxArtifact(model=place_float(graph).model, placement={})


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return _Network().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def folder(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "vae_encoder"
    component = write_variants(folder, {(size, 0): _artifact(network, size or SIZES[0]) for size in (None, *SIZES[1:])})
    assert component.files == (
        "vae_encoder/model.onnx", "vae_encoder/model.8x16.onnx", "vae_encoder/model.16x8.onnx", f"vae_encoder/{WEIGHTS_FILE}"
    )  # fmt: skip
    assert sorted(f"vae_encoder/{path.name}" for path in folder.iterdir()) == sorted(component.files)
    assert [component.of(size).file for size in (None, *SIZES[1:])] == list(component.files[:3])
    return folder


@pytest.mark.parametrize("engine", ["ort", "openvino"])
@pytest.mark.parametrize(("size", "name"), list(zip(SIZES, ("model.onnx", "model.8x16.onnx", "model.16x8.onnx"), strict=True)))
def test_every_size_is_the_network(engine: str, size: PictureSize, name: str, network: nn.Module, folder: Path) -> None:
    pytest.importorskip({"ort": "onnxruntime"}.get(engine, engine))
    image = torch.randn(1, 3, *size.grid, generator=torch.Generator().manual_seed(1))
    session = open_engine(engine, (), "float").load(folder / name, 1)
    assert dict(session.inputs) == {"image": tuple(image.shape)}
    np.testing.assert_allclose(session.run({"image": image.numpy()}), network(image).numpy(), atol=1e-5)


def test_a_weight_is_on_the_disk_once(network: nn.Module, folder: Path) -> None:
    weights = sum(parameter.numel() * 4 for parameter in network.parameters() if parameter.numel() * 4 >= 256)
    tables = sum(size.width * size.height * 4 for size in SIZES if size.width * size.height * 4 >= 256)
    assert weights <= (folder / WEIGHTS_FILE).stat().st_size <= weights + tables + 64 * 8
    for name in ("model.onnx", "model.8x16.onnx"):
        graph = ir.load(folder / name).graph
        places = {tensor.offset for value in graph.initializers.values() if isinstance(tensor := value.const_value, ir.ExternalTensor)}
        assert len(places) >= 2
    assert (folder / "model.8x16.onnx").stat().st_size < (folder / "model.onnx").stat().st_size


def test_the_first_keeps_its_names(folder: Path) -> None:
    named = [node.name for node in onnx.load(folder / "model.onnx", load_external_data=False).graph.node]
    assert all(named)
    assert not any(node.name for node in onnx.load(folder / "model.16x8.onnx", load_external_data=False).graph.node)


def test_files_of_an_earlier_run_give_the_same_bytes(network: nn.Module, folder: Path, tmp_path: Path) -> None:
    kept = []
    for size in SIZES:
        _artifact(network, size).write(tmp_path / str(size))
        kept.append(FileArtifact(source=tmp_path / str(size), placement={}, agreement_db={}))
    write_variants(tmp_path / "again" / "vae_encoder", {(size, 0): files for size, files in zip((None, *SIZES[1:]), kept, strict=True)})
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / "vae_encoder" / path.name).read_bytes()


def test_binaries_lie_apart_each_in_a_folder_of_its_own(tmp_path: Path) -> None:
    def binary(name: str) -> FileArtifact:
        source = tmp_path / "made" / name
        source.mkdir(parents=True)
        for file in ("model.onnx", "model_qnn.bin"):
            (source / file).write_text(f"{name}/{file}")
        return FileArtifact(source=source, placement={}, agreement_db={}, identity=name)

    variants = [(size, group) for size in (None, SIZES[1]) for group in range(3)]
    component = write_variants(tmp_path / "unet", {variant: binary(str(number)) for number, variant in enumerate(variants)})
    folders = ["unet", "unet/group-2", "unet/group-3", "unet/8x16", "unet/8x16.group-2", "unet/8x16.group-3"]
    for number, (variant, folder) in enumerate(zip(variants, folders, strict=True)):
        files = component.of(*variant)
        assert (files.file, files.data_files) == (f"{folder}/model.onnx", (f"{folder}/model_qnn.bin",))
        assert (tmp_path / files.file).read_text() == f"{number}/model.onnx"
    assert len(set(component.files)) == 12


def test_groups_of_all_sizes_lie_over_the_same_weights(network: nn.Module, folder: Path, tmp_path: Path) -> None:
    other = _Network(gain=0.5)
    other.load_state_dict(network.state_dict())
    networks = {0: network, 1: other.eval().requires_grad_(False)}
    sizes = (None, SIZES[1])
    component = write_variants(
        tmp_path / "unet", {(size, group): _artifact(networks[group], size or SIZES[0]) for size in sizes for group in networks}
    )
    assert [component.of(size, group).file for group in networks for size in sizes] == [
        "unet/model.onnx", "unet/model.8x16.onnx", "unet/model.group-2.onnx", "unet/model.8x16.group-2.onnx"
    ]  # fmt: skip
    assert sorted(f"unet/{path.name}" for path in (tmp_path / "unet").iterdir()) == sorted(component.files)
    assert (tmp_path / "unet" / WEIGHTS_FILE).stat().st_size <= (folder / WEIGHTS_FILE).stat().st_size
    for (size, group), gain in {(None, 1): 0.5, (SIZES[1], 0): 1.0, (SIZES[1], 1): 0.5}.items():
        assert networks[group].gain == gain
        image = torch.randn(1, 3, *(size or SIZES[0]).grid, generator=torch.Generator().manual_seed(1))
        session = open_engine("ort", (), "float").load(tmp_path / component.of(size, group).file, 1)
        np.testing.assert_allclose(session.run({"image": image.numpy()}), networks[group](image).numpy(), atol=1e-5)


@pytest.mark.parametrize("shared", [False, True])
def test_the_sizes_that_a_split_reads_stay_in_the_graph(shared: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines infer shapes by them before they read another file; normalised slots have an entry for each slot."""
    count = 40
    parts = [f"part{i}" for i in range(count)]
    nodes = [
        onnx.helper.make_node("Mul", ["x", "weight"], ["scaled"]),
        onnx.helper.make_node("Split", ["scaled", "sizes"], parts),
        onnx.helper.make_node("Concat", parts[::-1], ["y"], axis=0),
    ]
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [4 * count]) for name in "xy")
    constants = {"weight": np.arange(4 * count, dtype=np.float32), "sizes": np.full(count, 4, np.int64)}
    graph = onnx.helper.make_graph(nodes, "g", [x], [y], [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()])
    model = ir.from_proto(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10))
    monkeypatch.setattr(artifact, "EXTERNAL_DATA_BYTES", 0)
    places = [(None, 0), (None, 1)] if shared else [(None, 0)]
    write_variants(tmp_path / "unet", {place: OnnxArtifact(model=model.clone(), placement={}) for place in places})
    expected = constants["weight"].reshape(count, 4)[::-1].ravel()
    for file in (tmp_path / "unet").glob("*.onnx"):
        actual = open_engine("ort", (), "float").load(file, 1).run({"x": np.ones(4 * count, np.float32)})
        assert np.array_equal(actual, expected)
