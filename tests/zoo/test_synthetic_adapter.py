"""The adapter made on purpose is the same adapter, so many times as strong, in either layout and of any kind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from torch import nn

from quad.lora.low_rank import WHOLE
from quad.model.adapters import read_adapter
from quad.zoo.synthetic_adapter import write_amplified

CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "target_modules": ["layer"]}


def write(directory: Path, layout: str) -> Path:
    rng = np.random.default_rng(0)
    prefix, name = ("base_model.model.", "adapter_model") if layout == "peft" else ("unet.", "pytorch_lora_weights")
    tensors = {
        f"{prefix}layer.lora_{role}.weight": rng.normal(size=shape).astype(np.float32) for role, shape in (("A", (2, 4)), ("B", (3, 2)))
    }
    directory.mkdir()
    save_file(tensors, directory / f"{name}.safetensors")
    if layout == "peft":
        (directory / "adapter_config.json").write_text(json.dumps(CONFIG))
    return directory


@pytest.mark.parametrize("layout", ["peft", "diffusers"])
def test_every_update_is_so_many_times_as_large(layout: str, tmp_path: Path) -> None:
    network = nn.ModuleDict({"layer": nn.Linear(4, 3)})
    source = write(tmp_path / "source", layout)
    write_amplified(source, tmp_path / "made", 4.0)
    plain, amplified = (read_adapter("ink", directory, network).weights["layer"] for directory in (source, tmp_path / "made"))
    np.testing.assert_allclose(amplified.b @ amplified.a, 4.0 * (plain.b @ plain.a), rtol=1e-6)


KINDS = {
    "LoHa": {"hada_w1_a": (6, 2), "hada_w1_b": (2, 4), "hada_w2_a": (6, 2), "hada_w2_b": (2, 4)},
    "LoKr": {"lokr_w1": (2, 2), "lokr_w2_a": (3, 1), "lokr_w2_b": (1, 2)},
    "LoKr, both products": {"lokr_w1_a": (2, 1), "lokr_w1_b": (1, 2), "lokr_w2": (3, 2)},
    "full": {"diff": (6, 4)},
}


@pytest.mark.parametrize("kind", KINDS)
def test_and_of_any_kind(kind: str, tmp_path: Path) -> None:
    network, rng = nn.ModuleDict({"layer": nn.Linear(4, 6)}), np.random.default_rng(0)
    tensors = {f"lora_unet_layer.{role}": rng.normal(size=shape).astype(np.float32) for role, shape in KINDS[kind].items()}
    save_file(tensors, tmp_path / "ink.safetensors")
    write_amplified(tmp_path / "ink.safetensors", tmp_path / "made", 0.5)
    files = (tmp_path / "ink.safetensors", tmp_path / "made" / "ink.safetensors")
    plain, amplified = (read_adapter("ink", file, network, limits=WHOLE).weights["layer"] for file in files)
    np.testing.assert_allclose(amplified.b @ amplified.a, 0.5 * (plain.b @ plain.a), rtol=1e-4, atol=1e-6)
