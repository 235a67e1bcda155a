"""Files as each trainer writes them, against what that trainer's own forward adds to the weight, wherever two matrices are that exactly.

sd-scripts, LyCORIS LoCon   conv(up, conv(down, x)) alpha / r: a 1x1 over the layer's own kernel, or three in a row (Tucker)
PEFT, diffusers             the layer's `get_delta_weight`; tests/lora/test_parity.py has whole networks
OneTrainer                  as sd-scripts, in five spellings
ComfyUI                     as sd-scripts, in the checkpoint's names
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from quad.lora.keys import dialect_of
from quad.lora.module_names import original_names
from quad.model.adapters import read_adapter
from tests.model.dialects import TARGETS, targeted

RANK, ALPHA = 4, 3.0
LAYERS = (*TARGETS["attention"], *TARGETS["projections"], *TARGETS["convolutions"], *TARGETS["time"])
Named = Callable[[str, Mapping[str, str]], str]  # a module's path and its network's original names -> its name in the file


def flat(prefix: str, original: bool = False) -> Named:
    return lambda path, names: prefix + (names[path] if original else path).replace(".", "_")


def dotted(prefix: str, original: bool = True) -> Named:
    return lambda path, names: prefix + (names[path] if original else path)


# Name of the writer's format -> how it names a module of the U-Net and of the text encoder, its two matrices, and what `quad inspect` says.
DOWN_UP, A_B = ("lora_down.weight", "lora_up.weight"), ("lora_A.weight", "lora_B.weight")
FORMATS: dict[str, tuple[Named, Named, tuple[str, str], str]] = {
    "sd-scripts": (flat("lora_unet_"), flat("lora_te_text_model_"), DOWN_UP, "kohya"),
    "sd-scripts, original blocks": (flat("lora_unet_", original=True), flat("lora_te_text_model_"), DOWN_UP, "kohya"),
    "LyCORIS": (flat("lycoris_"), flat("lora_te1_text_model_"), DOWN_UP, "LyCORIS"),
    "OneTrainer, legacy": (flat("lora_unet_"), flat("lora_te_text_model_"), DOWN_UP, "kohya"),
    "OneTrainer, OMI": (dotted("unet."), dotted("clip_l.text_model.", original=False), DOWN_UP, "OMI"),
    "OneTrainer, Comfy": (
        dotted("diffusion_model."), dotted("text_encoders.clip_l.transformer.text_model.", original=False), A_B, "ComfyUI",
    ),
    "OneTrainer, original": (dotted(""), flat("lora_te_text_model_"), DOWN_UP, "original names"),
    "OneTrainer, diffusers": (dotted("unet.", original=False), dotted("text_encoder.text_model.", original=False), A_B, "diffusers"),
    "ComfyUI, its own": (dotted("diffusion_model."), dotted("clip_l.transformer.text_model.", original=False), DOWN_UP, "ComfyUI"),
    "ComfyUI, the checkpoint's": (
        dotted("model.diffusion_model."), dotted("cond_stage_model.transformer.text_model.", original=False), DOWN_UP, "ComfyUI",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def text() -> CLIPTextModel:
    torch.manual_seed(1)
    sizes = {"vocab_size": 8, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return CLIPTextModel(CLIPTextConfig(**sizes, max_position_embeddings=8)).eval()


def written(layer: torch.nn.Module, draw: torch.Generator) -> tuple[Tensor, Tensor, NDArray[np.float64]]:
    """Both matrices, and what the trainer's forward adds to the weight: `up` is 1x1, so that the kernel is `down`'s."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    tail = (1,) * (weight.ndim - 2)
    down = torch.randn(RANK, *weight.shape[1:], generator=draw)
    up = torch.randn(weight.shape[0], RANK, *tail, generator=draw)
    delta = torch.einsum("or,r...->o...", up.flatten(1).double(), down.double()) * (ALPHA / RANK)
    return down, up, delta.numpy()


@pytest.mark.parametrize("alpha", [True, False])
@pytest.mark.parametrize("spelling", FORMATS)
def test_every_module_of_every_writer_is_exact(
    spelling: str, alpha: bool, unet: UNet2DConditionModel, text: CLIPTextModel, tmp_path: Path
) -> None:
    unet_name, text_name, roles, dialect = FORMATS[spelling]
    names, draw = original_names([path for path, _ in unet.named_modules()]), torch.Generator().manual_seed(0)
    tensors: dict[str, Tensor] = {}
    expected: dict[str, NDArray[Any]] = {}
    for network, targets, prefix, named in ((unet, LAYERS, "", unet_name), (text, TARGETS["text"], "text_encoder.", text_name)):
        for path, layer in targeted(network, targets).items():
            down, up, delta = written(layer, draw)
            name = named(path, names)
            tensors |= {f"{name}.{role}": part for role, part in zip(roles, (down, up), strict=True)}
            tensors |= {f"{name}.alpha": torch.tensor(ALPHA)} if alpha else {}
            expected[prefix + path] = delta if alpha else delta * RANK / ALPHA
    save_file(tensors, tmp_path / "a.safetensors")
    adapter = read_adapter("a", tmp_path / "a.safetensors", unet, text_encoder=text)
    assert adapter.weights.keys() == expected.keys()
    for path, delta in expected.items():
        pair = adapter.weights[path]
        product = np.tensordot(pair.b.reshape(len(pair.b), -1).astype(np.float64), pair.a.astype(np.float64), 1)
        assert np.linalg.norm(product - delta) <= 1e-6 * np.linalg.norm(delta)
    assert adapter.error == 0.0
    assert {dialect_of(key) for key in tensors if not key.startswith(("lora_te", "text_enc", "clip_l", "cond"))} == {dialect}
