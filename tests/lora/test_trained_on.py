"""What trainers write of the base into a LoRA's header, and that another base is not taken in silence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from quad.lora.adapter import FloatAdapter
from quad.lora.layout import LayerLayout, NetworkLayout
from quad.lora.read import read_lora
from quad.lora.report.trained_on import TrainedOn

CONV, TEXT = "mid_block.resnets.0.conv1", "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
SD1, SD2 = "Stable Diffusion 1.x", "Stable Diffusion 2.x"

# As sd-scripts names bases, with and without ModelSpec, and what each means: family and prediction.
WRITTEN = [
    ({"ss_base_model_version": "sd_v1", "ss_v2": "False"}, SD1, "epsilon"),
    ({"ss_base_model_version": "sd_v1_v", "ss_v2": "False"}, SD1, "v_prediction"),
    ({"ss_base_model_version": "sd_v2", "ss_v2": "True"}, SD2, "epsilon"),
    ({"ss_base_model_version": "sd_v2_v", "ss_v2": "True"}, SD2, "v_prediction"),
    ({"ss_base_model_version": "sdxl_base_v1-0"}, "SDXL", ""),
    ({"ss_base_model_version": "sd3m"}, "Stable Diffusion 3", ""),
    ({"modelspec.architecture": "stable-diffusion-v1/lora", "modelspec.prediction_type": "epsilon"}, SD1, "epsilon"),
    ({"modelspec.architecture": "stable-diffusion-v1/lora", "modelspec.prediction_type": "v"}, SD1, "v_prediction"),
    ({"modelspec.architecture": "stable-diffusion-v2-512/lora"}, SD2, "epsilon"),
    ({"modelspec.architecture": "stable-diffusion-v2-768-v/lora"}, SD2, "v_prediction"),
    ({"modelspec.architecture": "stable-diffusion-xl-v1-base/lora", "modelspec.prediction_type": "v_prediction"}, "SDXL", "v_prediction"),
    ({"modelspec.architecture": "flux-1-dev/lora"}, "Flux", ""),
    ({"modelspec.architecture": "stable-diffusion-v1/lora", "ss_base_model_version": "sd_v1_v"}, SD1, "v_prediction"),
    ({"ss_v_parameterization": "True"}, "", "v_prediction"),
    ({"ss_base_model_version": "my_own_5"}, "", ""),
    ({}, "", ""),
]


@pytest.mark.parametrize(("metadata", "family", "prediction"), WRITTEN)
def test_what_trainers_write_of_the_base(metadata: dict[str, str], family: str, prediction: str) -> None:
    trained = TrainedOn.of(metadata)
    assert (trained.family, trained.prediction) == (family, prediction)


def read(folder: Path, metadata: dict[str, str], width: int) -> FloatAdapter:
    """A LoRA of a convolution, which fits every base of Stable Diffusion's shape, on one with text features of a width."""
    name = "lora_unet_" + CONV.replace(".", "_")
    tensors = {f"{name}.lora_down.weight": np.ones((2, 8, 3, 3), np.float32), f"{name}.lora_up.weight": np.ones((8, 2, 1, 1), np.float32)}
    tensors[f"{name}.alpha"] = np.array(2.0, np.float32)
    save_file(tensors, folder / "a.safetensors", metadata or None)
    return read_lora("a", folder / "a.safetensors", NetworkLayout({CONV: LayerLayout((8, 8, 3, 3)), TEXT: LayerLayout((8, width))}))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(("metadata", "family", "trained"), WRITTEN)
def test_a_base_unlike_that_of_the_metadata_is_named(
    metadata: dict[str, str], family: str, trained: str, prediction: str, tmp_path: Path
) -> None:
    notes = read(tmp_path, metadata, 768).for_base(prediction).notes
    assert any(note.startswith("trained on a base that predicts") for note in notes) == (trained not in ("", prediction))
    assert any(note.startswith(f"trained on {family}, by its metadata (") for note in notes) == (family not in ("", SD1))
    assert len(notes) <= 2
    if len(notes) == 2:
        assert f"predicts {trained}, by its metadata; this one predicts {prediction}" in notes[0]
        assert notes[1].endswith(f"; this base is like {SD1}")


def test_a_base_of_no_known_family_is_compared_with_none(tmp_path: Path) -> None:
    assert read(tmp_path, {"ss_base_model_version": "sd_v2"}, 16).notes == ()


DYLORA = '{"algo": "dylora", "block_size": "8", "preset": "full"}'


@pytest.mark.parametrize(
    ("module", "arguments", "block"),
    [
        ("lycoris.kohya", DYLORA, 8),
        ("lycoris.kohya", '{"algo": "DyLoRA"}', 4),
        ("lycoris.kohya", '{"algo": "locon"}', 0),
        ("networks.dylora", '{"unit": "4"}', 0),  # sd-scripts' own scales as its file says
        ("lycoris.kohya", "[1", 0),
        ("lycoris.kohya", "[]", 0),
        ("lycoris.kohya", '{"algo": "dylora", "block_size": "many"}', 0),
        ("lycoris.kohya", '{"algo": "dylora", "block_size": Infinity}', 0),
        ("lycoris.kohya", "[" * 100000, 0),
    ],
)
def test_a_file_of_dylora_names_the_weight_that_was_trained(module: str, arguments: str, block: int, tmp_path: Path) -> None:
    notes = read(tmp_path, {"ss_network_module": module, "ss_network_args": arguments}, 768).notes
    assert [f"weight {block} is as strong as trained" in note for note in notes] == [True] * bool(block)
