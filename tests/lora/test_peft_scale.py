"""The scale of PEFT's weights stands in PEFT's config alone: it is read wherever they were saved, and never guessed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file

from quad.core.errors import InputError
from quad.lora.locate import DIFFUSERS_NAME, PEFT_CONFIG, PEFT_NAME
from quad.model.adapters import read_adapter

PATH = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
WRAPPER = "base_model.model."
RANK, ALPHA = 16, 8


def weights(unet: UNet2DConditionModel) -> dict[str, torch.Tensor]:
    layer, draw = unet.get_submodule(PATH), torch.Generator().manual_seed(0)
    return {
        f"{PATH}.lora_A.weight": torch.randn(RANK, layer.weight.shape[1], generator=draw),
        f"{PATH}.lora_B.weight": torch.randn(layer.weight.shape[0], RANK, generator=draw),
    }


def save(path: Path, tensors: dict[str, torch.Tensor], prefix: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({prefix + key: value for key, value in tensors.items()}, path)
    return path


def config(folder: Path, **options: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PEFT_CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, **options}))


@pytest.mark.parametrize(("options", "factor"), [({}, ALPHA / RANK), ({"use_rslora": True}, ALPHA / RANK**0.5)])
@pytest.mark.parametrize("component", ["", "unet", "transformer"])
@pytest.mark.parametrize("name", [DIFFUSERS_NAME, PEFT_NAME, "lcm.safetensors"])
@pytest.mark.parametrize("prefix", [WRAPPER, f"unet.{WRAPPER}", f"transformer.{WRAPPER}"])
def test_the_config_beside_the_weights_rules(
    prefix: str, name: str, component: str, options: dict[str, object], factor: float, unet: UNet2DConditionModel, tmp_path: Path
) -> None:
    tensors, folder = weights(unet), tmp_path / component
    file = save(folder / name, tensors, prefix)
    config(folder, **options)
    pair = read_adapter("a", tmp_path if name != "lcm.safetensors" else file, unet).weights[PATH]
    want = tensors[f"{PATH}.lora_B.weight"] @ tensors[f"{PATH}.lora_A.weight"] * factor
    torch.testing.assert_close(torch.from_numpy(pair.b @ pair.a), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [DIFFUSERS_NAME, PEFT_NAME, "lcm.safetensors"])
@pytest.mark.parametrize("prefix", [WRAPPER, f"unet.{WRAPPER}", f"transformer.{WRAPPER}"])
def test_without_it_alpha_is_unknown(prefix: str, name: str, unet: UNet2DConditionModel, tmp_path: Path) -> None:
    file = save(tmp_path / "unet_lora" / name, weights(unet), prefix)
    with pytest.raises(InputError, match=r"expected adapter_config\.json beside it, .* alpha is unknown; give the trainer's directory$"):
        read_adapter("a", file, unet)
    config(tmp_path)
    with pytest.raises(InputError, match=r"or a copy of adapter_config\.json from the directory above$"):
        read_adapter("a", file, unet)
    known = {**weights(unet), f"{PATH}.alpha": torch.tensor(float(ALPHA))}
    with_alpha = read_adapter("a", save(tmp_path / "known" / name, known, prefix), unet)
    assert with_alpha.rank == RANK


def test_diffusers_own_file_keeps_its_own_scale(unet: UNet2DConditionModel, tmp_path: Path) -> None:
    """Keys that diffusers renamed say nothing of alpha, which then equals the rank for diffusers: a config beside is of another file."""
    tensors = weights(unet)
    StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=tensors)
    config(tmp_path)
    pair = read_adapter("a", tmp_path, unet).weights[PATH]
    torch.testing.assert_close(torch.from_numpy(pair.b), tensors[f"{PATH}.lora_B.weight"])


def test_what_the_file_is_decides_not_how_a_key_begins(unet: UNet2DConditionModel, tmp_path: Path) -> None:
    """PEFT's own state dict under any name, or bare keys under PEFT's name, and alpha of one module alone: the others' is unknown."""
    tensors, other = weights(unet), PATH.replace("to_q", "to_k")
    loaded = {key.replace(".weight", ".default.weight"): value for key, value in tensors.items()}
    wrapped_other = {f"{WRAPPER}{key.replace(PATH, other)}": value.clone() for key, value in tensors.items()}
    partly = {**tensors, f"{PATH}.alpha": torch.tensor(float(ALPHA)), **wrapped_other}
    for number, (name, file) in enumerate({"lcm.safetensors": loaded, PEFT_NAME: tensors, "x.safetensors": partly}.items()):
        folder = tmp_path / f"{number}"
        path = save(folder / name, file, "")
        with pytest.raises(InputError, match="alpha is unknown"):
            read_adapter("a", path, unet)
        config(folder)
        adapter = read_adapter("a", path, unet)
        for pair in adapter.weights.values():
            torch.testing.assert_close(torch.from_numpy(pair.b), tensors[f"{PATH}.lora_B.weight"] * ALPHA / RANK)
        assert adapter.notes == ()


def test_a_file_that_says_no_alpha_says_so(unet: UNet2DConditionModel, tmp_path: Path) -> None:
    plain = read_adapter("a", save(tmp_path / "a.safetensors", weights(unet), "unet."), unet)
    assert plain.notes == ("no alpha for 1 modules: they count as they are (alpha = rank), as diffusers and sd-scripts read them",)
    known = {**weights(unet), f"{PATH}.alpha": torch.tensor(float(RANK))}
    assert read_adapter("a", save(tmp_path / "b.safetensors", known, "unet."), unet).notes == ()
