"""A whole model in the place of a LoRA is told to be one, whatever network it is of and however it is spelled."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from typer.testing import CliRunner

from quad.cli.main import app
from quad.core.errors import InputError
from quad.lora.file import open_lora, require_lora
from tests.lora.test_malformed_files import PEFT_PAIR

# First layer and another tensor of each; whole numbers are not said to be of a wrong type.
CHECKPOINTS = {
    "one file of Stable Diffusion": {
        "model.diffusion_model.input_blocks.0.0.weight": torch.ones(8, 4, 3, 3),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
    },
    "its U-Net alone": {"input_blocks.0.0.weight": torch.ones(8, 4, 3, 3), "out.2.bias": torch.ones(4)},
    "its VAE alone": {"decoder.conv_in.weight": torch.ones(8, 4, 3, 3)},
    "a VAE in one file": {"first_stage_model.encoder.conv_in.weight": torch.ones(8, 3, 3, 3)},
    "diffusers' U-Net": {"conv_in.weight": torch.ones(8, 4, 3, 3), "num_updates": torch.tensor(3)},
    "CLIP": {"text_model.embeddings.token_embedding.weight": torch.ones(9, 4)},
    "OpenCLIP": {"cond_stage_model.model.token_embedding.weight": torch.ones(9, 4)},
    "T5": {"shared.weight": torch.ones(9, 4)},
    "PixArt": {"pos_embed.proj.weight": torch.ones(8, 4, 2, 2)},
    "Flux": {"model.diffusion_model.img_in.weight": torch.ones(8, 4)},
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_is_told_to_be_one(name: str, tmp_path: Path) -> None:
    file = tmp_path / "ink.safetensors"
    save_file(CHECKPOINTS[name], file)
    first = next(iter(CHECKPOINTS[name]))
    for reading in (open_lora, require_lora):
        with pytest.raises(InputError) as caught:
            reading(file)
        assert f"expected a LoRA, found whole weights such as {first}; this is a checkpoint, not a LoRA: give it as MODEL" in str(
            caught.value
        )
    shown = CliRunner().invoke(app, ["inspect", str(file)])
    assert shown.exit_code == 1
    assert "this is a checkpoint, not a LoRA" in shown.output


def test_an_adapter_with_whole_layers_beside_it_is_no_checkpoint(unet: UNet2DConditionModel, tmp_path: Path) -> None:
    layers = {"base_model.model.conv_in.weight": unet.conv_in.weight.detach()}
    save_file({**PEFT_PAIR, **layers}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"r": 4, "lora_alpha": 4}')
    require_lora(tmp_path)
