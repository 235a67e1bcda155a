"""A large model's weights are held as its file has them, and as integers once they are rounded: the bundle is the same to the bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from quad.build import request as build_request
from quad.build.build import build
from quad.build.request import BuildRequest
from quad.compile.artifact import save_graph
from quad.compile.export import export_graph
from quad.compile.graph_specs import unet_spec
from quad.model.base.open import BaseOptions, open_model
from quad.model.slots.layers import layers_of
from quad.model.slots.network import slot_network
from quad.quantize.observe.calibrate import CalibrationSample
from tests.model.dialects import strong_lora
from tests.stable_diffusion_xl import save_xl

IGNORED = ("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
COMPACT = BaseOptions(compact_from=0)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small SDXL in half precision."""
    root = save_xl(tmp_path_factory.mktemp("compact"))
    for file in root.rglob("*.safetensors"):
        save_file({name: tensor.half() for name, tensor in load_file(file).items()}, file)
    return root


def test_opened_as_stored(directory: Path) -> None:
    full, compact = open_model(directory), open_model(directory, COMPACT)
    assert compact.digest == full.digest
    for network, other in ((compact.unet, full.unet), (compact.text_encoder, full.text_encoder)):
        layers = {path: layer for path, layer in network.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)}
        assert {layer.weight.dtype for layer in layers.values()} == {torch.float16}
        assert all(torch.equal(layer.weight.float(), other.get_submodule(path).weight) for path, layer in layers.items())
    assert {tensor.dtype for tensor in compact.vae.parameters()} == {torch.float32}


@pytest.mark.filterwarnings(*IGNORED)
def test_a_graph_holds_no_numbers_of_its_layers_written_or_not(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = open_model(directory, COMPACT)
    network, table = slot_network(base.unet, ())
    layers = layers_of(network)
    model = export_graph(network, unet_spec(base, table))
    monkeypatch.setattr("quad.compile.artifact.EXTERNAL_DATA_BYTES", 0)
    assert save_graph(model, tmp_path / "model.onnx") == ("model.onnx.data",)
    lazy = {name: value.const_value for name, value in model.graph.initializers.items() if isinstance(value.const_value, ir.LazyTensor)}
    assert lazy.keys() >= {f"{path}.weight" for path in layers}
    assert not any(tensor.cache for tensor in lazy.values())
    written = ir.load(tmp_path / "model.onnx").graph.initializers["conv_in.weight"].const_value
    assert written is not None
    np.testing.assert_array_equal(written.numpy(), layers["conv_in"].weight.float().numpy())
    assert {layer.weight.dtype for layer in layers.values()} == {torch.float16}  # what stood in for them is gone


@pytest.mark.filterwarnings(*IGNORED)
def test_the_same_bundle(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With weights of 4 bits, in the U-Net, and of 8, there and in the text encoder."""
    tensors = {
        f"{part}.{key}": value
        for part, network in (("unet", open_model(directory).unet), ("text_encoder", open_model(directory).text_encoder.clip_l))
        for key, value in strong_lora(network, ("attn2.to_k",) if part == "unet" else ("q_proj",), (2,)).items()
    }
    save_file(tensors, tmp_path / "ink.safetensors")
    samples = [CalibrationSample(task="text-to-image", prompt="a cat", adapter=name, steps=2) for name in (None, "ink")]
    digests = []
    for least in (0, None):
        monkeypatch.setattr(build_request, "COMPACT_FROM", least)
        output = tmp_path / f"{least}"
        built = build(BuildRequest(directory, {"ink": tmp_path / "ink.safetensors"}, output, samples=samples, precision="w4:mixed:50"))
        digests.append({name: entry.sha256 for name, entry in built.manifest.files.items()})
    assert digests[0] == digests[1]
