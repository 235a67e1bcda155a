"""A tiny random model with two adapters on disk, exported once: fixtures of `compile`, `build` and `admit`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import diffusers
import numpy as np
import onnx_ir as ir
import pytest
import torch
import transformers
from numpy.typing import NDArray
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from quad.compile.export import GraphSpec, export_graph
from quad.compile.graph_specs import unet_spec
from quad.core.slots import SlotTable
from quad.lora.read import FloatAdapter
from quad.model.adapters import read_adapter
from quad.model.base.modules import share_copy
from quad.model.base.open import Base, open_model
from quad.model.slots.network import SlottedNetwork, slot_network

SIZE, TOKENS, HIDDEN = 16, 8, 16
TASKS = {
    "text-to-image": {"adapter": None, "sampler": {"kind": "ddim", "steps": 2}, "condition": "none", "mask": "ones", "guidance": 2.0},
    "transform": {"adapter": "transform", "sampler": {"kind": "euler", "steps": 2}, "condition": "image", "mask": "zeros"},
    "removal": {"adapter": "removal", "sampler": {"kind": "olss", "steps": 2}, "condition": "masked-image", "mask": "input"},
}


def _write_model(root: Path) -> None:
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=SIZE // 4, in_channels=9, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=HIDDEN, attention_head_dim=2, norm_num_groups=4,
    )  # fmt: skip
    vae = diffusers.AutoencoderTiny(
        latent_channels=4, encoder_block_out_channels=(8, 8, 8), decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(0, 1, 1), num_decoder_blocks=(1, 1, 0),
    )  # fmt: skip
    text = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=8, hidden_size=HIDDEN, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=TOKENS, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        )
    )  # fmt: skip
    unet.save_pretrained(root / "unet")
    vae.save_pretrained(root / "vae")
    text.save_pretrained(root / "text_encoder")
    scheduler = diffusers.DDIMScheduler(
        beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", rescale_betas_zero_snr=True, clip_sample=False,
        timestep_spacing="trailing",
    )  # fmt: skip
    scheduler.save_pretrained(root / "scheduler")
    vocabulary = {word: index for index, word in enumerate(("<pad>", "<s>", "</s>", "<unk>", "a", "red", "house", "tree"))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_padding(pad_id=0, pad_token="<pad>", length=TOKENS)
    tokenizer.enable_truncation(TOKENS)
    (root / "tokenizer").mkdir()
    tokenizer.save(str(root / "tokenizer" / "tokenizer.json"))
    world = {"latent_scale": [0.5, 1.0, 1.5, 2.0], "latent_shift": [0.1, 0.0, -0.1, 0.2], "size": SIZE, "tasks": TASKS}
    (root / "toyland.json").write_text(json.dumps(world))


def write_lora(path: Path, unet: torch.nn.Module, rank: int, endings: tuple[str, ...], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, layer in unet.named_modules():
        if not name.endswith(endings) or not isinstance(layer, torch.nn.Linear | torch.nn.Conv2d):
            continue
        tail = (1, 1) if isinstance(layer, torch.nn.Conv2d) else ()
        tensors[f"unet.{name}.lora_A.weight"] = torch.randn(rank, *layer.weight.shape[1:], generator=generator) * 0.2
        tensors[f"unet.{name}.lora_B.weight"] = torch.randn(layer.weight.shape[0], rank, *tail, generator=generator) * 0.2
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers directory of a random model, 16 pixels wide."""
    root = tmp_path_factory.mktemp("tiny")
    _write_model(root)
    return root


@pytest.fixture(scope="session")
def base(model_dir: Path) -> Base:
    return open_model(model_dir)


@pytest.fixture(scope="session")
def adapter_files(base: Base, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two adapters of different ranks and different targets, one with convolutions."""
    root = tmp_path_factory.mktemp("loras")
    files = {name: root / name / "pytorch_lora_weights.safetensors" for name in ("transform", "removal")}
    write_lora(files["transform"], base.unet, 4, ("attn1.to_q", "attn2.to_v", "to_out.0"), 1)
    write_lora(files["removal"], base.unet, 2, ("attn1.to_q", "conv_in", "ff.net.2", "resnets.0.conv1"), 2)
    return files


@dataclass(frozen=True)
class Tiny:
    """The tiny model, slotted; exported, as it was, where a test asks for its graph."""

    base: Base
    adapters: tuple[FloatAdapter, ...]
    network: SlottedNetwork
    table: SlotTable
    as_slotted: SlottedNetwork
    spec: GraphSpec

    @property
    def inputs(self) -> dict[str, NDArray[np.float32]]:
        return {name: tensor.numpy() for name, tensor in self.spec.inputs.items()}

    @cached_property
    def graph(self) -> ir.Model:
        return export_graph(self.as_slotted, self.spec)

    def torch_output(self, slots: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        """The slotted torch network on the example inputs."""
        tensors = {name: torch.from_numpy(values) for name, values in slots.items()}
        with torch.no_grad():
            return self.network(*(torch.from_numpy(values) for values in self.inputs.values()), tensors).numpy()


@pytest.fixture(scope="session")
def tiny(base: Base, adapter_files: dict[str, Path]) -> Tiny:
    adapters = tuple(read_adapter(name, path, base.unet) for name, path in adapter_files.items())
    network, table = slot_network(base.unet, adapters)
    return Tiny(base, adapters, network, table, share_copy(network), unet_spec(base, table))
