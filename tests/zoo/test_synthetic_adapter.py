"""The adapter made on purpose is the same adapter, so many times as strong, in either layout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from torch import nn

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
