"""The tiny model with adapters that reach its text encoder: fixtures of several files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from quad.build.request import BuildRequest
from quad.model.base.open import Base
from quad.quantize.observe.calibrate import CalibrationSample
from tests.build.samples import SAMPLES as WORDLESS

# Name -> rank, layers of the U-Net, layers of the text encoder.
ADAPTERS = {
    "removal": (2, ("attn1.to_q", "resnets.0.conv1"), ()),
    "transform": (4, ("attn1.to_q", "attn2.to_v"), ("q_proj", "v_proj", "fc2")),
    "words": (3, (), ("q_proj", "k_proj", "out_proj", "fc1")),
}


SAMPLES = (*WORDLESS, CalibrationSample(task="text-to-image", prompt="a red tree", adapter="words"))


def _tensors(network: torch.nn.Module, prefix: str, rank: int, endings: tuple[str, ...], seed: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    found = {}
    for path, layer in network.named_modules():
        if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d) and path.endswith(endings):
            tail = (1, 1) if isinstance(layer, torch.nn.Conv2d) else ()
            found[f"{prefix}.{path}.lora_A.weight"] = torch.randn(rank, *layer.weight.shape[1:], generator=draw) * 0.3
            found[f"{prefix}.{path}.lora_B.weight"] = torch.randn(layer.weight.shape[0], rank, *tail, generator=draw) * 0.3
    return found


@pytest.fixture(scope="session")
def text_adapter_files(base: Base, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`removal` in the U-Net alone, `transform` in both networks, `words` in the text encoder alone."""
    files = {}
    for seed, (name, (rank, unet, text)) in enumerate(ADAPTERS.items()):
        files[name] = tmp_path_factory.mktemp(name) / "pytorch_lora_weights.safetensors"
        tensors = _tensors(base.unet, "unet", rank, unet, seed) | _tensors(base.text_encoder, "text_encoder", rank, text, 10 + seed)
        save_file(tensors, files[name])
    return files


@pytest.fixture(scope="session")
def text_request(model_dir: Path, text_adapter_files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> BuildRequest:
    """A build with all three; the output is to be replaced."""
    return BuildRequest(
        model_dir, text_adapter_files, tmp_path_factory.mktemp("text") / "phone", samples=SAMPLES, precision="w8a16", distill_steps=2
    )


def to(request: BuildRequest, name: str, target: str, precision: str) -> BuildRequest:
    """The same build elsewhere, for another target."""
    return replace(request, output=request.output.parent / name, target=target, precision=precision)
