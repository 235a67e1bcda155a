"""What was measured is measured again when anything it depends on has changed, and only then."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from quad.evaluate.figures.identity import adapter_identities, model_identity


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model" / "scheduler").mkdir(parents=True)
    (tmp_path / "model" / "toyland.json").write_text(json.dumps({"steps": 8}))
    (tmp_path / "model" / "scheduler" / "scheduler_config.json").write_text("{}")
    return tmp_path / "model"


@pytest.mark.parametrize("file", ["toyland.json", "scheduler/scheduler_config.json"])
def test_a_changed_setting_is_another_model(model: Path, file: str) -> None:
    before = model_identity(model, "weights")
    assert model_identity(model, "weights") == before
    (model / file).write_text(json.dumps({"steps": 4}))
    assert model_identity(model, "weights") != before
    assert model_identity(model, "other weights") != before


def test_an_adapter_beside_it_is_not_the_model(model: Path) -> None:
    before = model_identity(model, "weights")
    (model / "adapters" / "ink").mkdir(parents=True)
    (model / "adapters" / "ink" / "adapter_config.json").write_text("{}")
    assert model_identity(model, "weights") == before


def test_a_place_does_not_count(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "elsewhere")
    assert model_identity(model, "weights") == model_identity(tmp_path / "elsewhere", "weights")


def test_an_adapters_alpha_counts(tmp_path: Path) -> None:
    save_file({"base_model.model.conv_in.lora_A.weight": np.ones((1, 4, 1, 1), np.float32)}, tmp_path / "adapter_model.safetensors")
    found = set()
    for alpha in (1, 2):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 1, "lora_alpha": alpha, "peft_type": "LORA"}))
        found.add(adapter_identities({"ink": tmp_path})["ink"])
    assert len(found) == 2
