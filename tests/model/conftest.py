"""A tiny random Stable Diffusion in diffusers' layout, and LoRA files for it, written with the libraries' own savers."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel
from transformers.utils import logging as transformers_logging

TARGETS: dict[str, tuple[str, ...]] = {
    "attention": ("to_q", "to_k", "to_v", "to_out.0"),
    "feed-forward": ("to_q", "to_v", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"),
    "convolutions": ("conv_in", "conv_out", "conv1", "conv2", "conv_shortcut", "time_emb_proj", "downsamplers.0.conv", "linear_1"),
}
Inputs = tuple[Tensor, Tensor, Tensor]


def new_unet() -> UNet2DConditionModel:
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=9,
        out_channels=4,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    return unet.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return new_unet()


@pytest.fixture(scope="session")
def inputs() -> Inputs:
    """sample `(2, 9, 8, 8)`, timestep `(1,)`, text `(2, 6, 16)`."""
    draw = torch.Generator().manual_seed(1)
    return torch.randn(2, 9, 8, 8, generator=draw), torch.tensor([437.0]), torch.randn(2, 6, 16, generator=draw)


def random_lora(unet: nn.Module, targets: tuple[str, ...], ranks: tuple[int, ...], seed: int) -> dict[str, Tensor]:
    """`<path>.lora_A.weight` and `<path>.lora_B.weight` for every matching layer, ranks taken in turn."""
    draw = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    layers = [(p, m) for p, m in unet.named_modules() if isinstance(m, nn.Linear | nn.Conv2d) and p.endswith(targets)]
    for i, (path, layer) in enumerate(layers):
        weight, rank = layer.weight, ranks[i % len(ranks)]
        tail = (1, 1) if weight.ndim == 4 else ()
        tensors[f"{path}.lora_A.weight"] = torch.randn(rank, *weight.shape[1:], generator=draw) * 0.1
        tensors[f"{path}.lora_B.weight"] = torch.randn(weight.shape[0], rank, *tail, generator=draw) * 0.1
    return tensors


@pytest.fixture(scope="session")
def lora_tensors(unet: UNet2DConditionModel) -> Callable[..., dict[str, Tensor]]:
    def make(kind: str = "attention", ranks: tuple[int, ...] = (4,), seed: int = 3) -> dict[str, Tensor]:
        return random_lora(unet, TARGETS[kind], ranks, seed)

    return make


@pytest.fixture
def lora_file(tmp_path: Path, lora_tensors: Callable[..., dict[str, Tensor]]) -> Callable[..., Path]:
    """Write a diffusers LoRA file, keys prefixed `unet.`; `tensors` replaces the random ones."""

    def write(
        kind: str = "attention",
        ranks: tuple[int, ...] = (4,),
        seed: int = 3,
        tensors: dict[str, Tensor] | None = None,
        metadata: dict[str, object] | None = None,
    ) -> Path:
        path = tmp_path / f"{kind}-{seed}" / "pytorch_lora_weights.safetensors"
        path.parent.mkdir(exist_ok=True)
        chosen = tensors or {f"unet.{k}": v for k, v in lora_tensors(kind, ranks, seed).items()}
        save_file(chosen, path, metadata={"lora_adapter_metadata": json.dumps(metadata)} if metadata else None)
        return path

    return write


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory, unet: UNet2DConditionModel) -> Path:
    """A whole model directory, without `toyland.json`."""
    root = tmp_path_factory.mktemp("model")
    torch.manual_seed(2)
    transformers_logging.disable_progress_bar()
    copy.deepcopy(unet).save_pretrained(root / "unet")
    AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(0, 1, 1),
        num_decoder_blocks=(1, 1, 0),
    ).save_pretrained(root / "vae")
    text = CLIPTextConfig(
        vocab_size=12,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=8,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    CLIPTextModel(text).save_pretrained(root / "text_encoder")
    DDIMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", rescale_betas_zero_snr=True).save_pretrained(
        root / "scheduler"
    )
    (root / "tokenizer").mkdir()
    tokenizer = Tokenizer(models.WordLevel({"<pad>": 0, "<bos>": 1, "<eos>": 2, "a": 3}, unk_token="<pad>"))
    tokenizer.enable_padding(length=8, pad_id=0, pad_token="<pad>")
    tokenizer.save(str(root / "tokenizer" / "tokenizer.json"))
    return root
