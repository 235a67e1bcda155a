"""LoHa, LoKr, DoRA and weight differences that are not whole, or not what their config says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from quad.core.errors import InputError, UnsupportedError
from quad.model.adapters import read_adapter
from tests.lora.test_kinds import LINEAR, WIDTH, kohya, read, save

LOHA = {f"hada_w{i}_{side}": torch.ones(*((WIDTH, 3) if side == "a" else (3, WIDTH))) for i in (1, 2) for side in "ab"}
LORA = {"lora_down.weight": torch.ones(4, WIDTH), "lora_up.weight": torch.ones(WIDTH, 4)}
ONE_KIND = "expected the tensors of one kind of adapter, found "


@pytest.mark.parametrize(
    ("roles", "error", "text"),
    [
        ({**LOHA, "hada_w2_b": torch.ones(3, 31)}, InputError, "hada_w2_b: expected (3, 32), found (3, 31)"),
        ({role: LOHA[role] for role in list(LOHA)[:3]}, InputError, "hada_w2_b: expected all tensors of the module, found only hada_w1_a"),
        ({**LOHA, "hada_w1_a": torch.full((WIDTH, 3), torch.nan)}, InputError, "hada_w1_a: expected finite numbers"),
        ({**LOHA, "hada_w1_a": torch.full((WIDTH, 3), 1e20)}, InputError, "hada_w1_a: expected numbers up to 1e+15, found 1e+20"),
        ({**LOHA, **LORA}, InputError, ONE_KIND),
        ({"lokr_w1": torch.ones(5, 4), "lokr_w2": torch.ones(8, 8)}, InputError, "expected sides that divide 32 and 32, found (5, 4)"),
        ({"lokr_w1": torch.ones(4, 4), "lokr_w2": torch.ones(8, 9)}, InputError, "lokr_w2: expected (8, 8), found (8, 9)"),
        ({"lokr_w1": torch.ones(4, 4)}, InputError, "lokr_w2_a: expected all tensors of the module"),
        ({"lokr_w1": torch.ones(4, 4), "lokr_w1_a": torch.ones(4, 2), "lokr_w2": torch.ones(8, 8)}, InputError, ONE_KIND),
        ({"lokr_w1": torch.ones(4, 4), "lokr_w2": torch.ones(8, 8), "lokr_t2": torch.ones(2, 2)}, InputError, ONE_KIND),
        ({**LORA, "dora_scale": torch.ones(32, 1), "lora_magnitude_vector": torch.ones(32)}, InputError, ONE_KIND),
        ({**LOHA, "lora_mid.weight": torch.ones(3, 3)}, InputError, ONE_KIND),
        ({**LORA, "lora_mid.weight": torch.ones(4, 4, 3, 3)}, InputError, "lora_mid: expected a convolution, found a linear layer"),
        ({**LORA, "dora_scale": torch.ones(31, 1)}, InputError, "dora_scale: expected 32 norms, found (31, 1)"),
        ({"dora_scale": torch.ones(WIDTH, 1)}, InputError, "expected the tensors of one kind of adapter, found dora_scale"),
        ({"alpha": torch.tensor(1.0)}, InputError, "expected the tensors of one kind of adapter, found alpha"),
        ({"diff": torch.ones(WIDTH, 31)}, InputError, "diff: expected (32, 32), found (32, 31)"),
        ({"diff": torch.ones(WIDTH, WIDTH), "alpha": torch.tensor(1.0)}, UnsupportedError, "found alpha with it"),
        ({"diff_b": torch.ones(WIDTH)}, InputError, "found 1 tensors of bias differences: "),
        ({"oft_blocks": torch.ones(4, 8, 8)}, UnsupportedError, "found OFT"),
    ],
)
def test_what_is_not_whole_is_refused(
    roles: dict[str, Tensor], error: type[Exception], text: str, unet: UNet2DConditionModel, tmp_path: Path
) -> None:
    with pytest.raises(error) as caught:
        read(tmp_path, unet, {f"{kohya(LINEAR)}.{role}": value for role, value in roles.items()})
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"use_dora": True, "r": 4}, "expected a magnitude (use_dora), found LoRA without one"),
        ({"peft_type": "LOHA", "r": 4}, "expected tensors of LOHA (peft_type), found LoRA"),
    ],
)
def test_tensors_that_are_not_of_the_config_s_kind(config: dict[str, Any], text: str, unet: UNet2DConditionModel, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    tensors = {
        f"base_model.model.{LINEAR}.lora_A.weight": torch.ones(4, WIDTH),
        f"base_model.model.{LINEAR}.lora_B.weight": torch.ones(WIDTH, 4),
    }
    save(tmp_path / "adapter_model.safetensors", tensors)
    with pytest.raises(InputError) as caught:
        read_adapter("a", tmp_path, unet)
    assert text in str(caught.value)
