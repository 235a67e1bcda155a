"""LoRA files of trained networks, in fp16, spelt as the libraries that people train with spell them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders import StableDiffusionLoraLoaderMixin, StableDiffusionXLLoraLoaderMixin
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from quad.core.slots import TEXT_ENCODER_2
from quad.core.storage.files import write_bytes
from quad.zoo.reference import ADAPTER_FILE

DIFFUSERS, LYCORIS = "diffusers", "lycoris"
Texts = Mapping[str, Any]
NONE: Mapping[str, Any] = MappingProxyType({})
_SAVED = ("r", "lora_alpha", "rank_pattern", "alpha_pattern")


def _weights(network: Any, name: str) -> dict[str, Tensor]:
    return {k: v.half().contiguous() for k, v in get_peft_model_state_dict(network, adapter_name=name).items()}


def _metadata(network: Any, name: str) -> dict[str, Any]:
    config = network.peft_config[name].to_dict()
    saved = (*_SAVED, "use_dora") if config["use_dora"] else _SAVED
    return {key: config[key] for key in saved} | {"target_modules": sorted(config["target_modules"])}


def save_diffusers(
    unet: UNet2DConditionModel,
    name: str,
    target: Path,
    texts: Texts = NONE,
    meant: Mapping[str, str] = NONE,
) -> None:
    """Write the LoRA or DoRA of this name as diffusers' `save_lora_weights` does.

    Args:
        texts: text encoders that have it too, by diffusers' names.
        meant: how it is meant to be run: more metadata of the file.
    """
    networks = {"unet": unet, **texts}
    weights = {f"{component}_lora_layers": _weights(network, name) for component, network in networks.items()}
    metadata = {f"{component}_lora_adapter_metadata": _metadata(network, name) for component, network in networks.items()}
    loader: Any = StableDiffusionXLLoraLoaderMixin if TEXT_ENCODER_2 in texts else StableDiffusionLoraLoaderMixin
    loader.save_lora_weights(target, **weights, **metadata)
    if meant:
        with safe_open(file := target / ADAPTER_FILE, "pt") as written:
            tensors, all_metadata = {key: written.get_tensor(key) for key in written.keys()}, written.metadata() | meant  # noqa: SIM118
        write_bytes(file, save(tensors, all_metadata))


def lycoris_tensors(weights: dict[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """PEFT's tensors under the names of LyCORIS, a LoCon's where the layers are convolutions: alpha beside each pair."""
    named: dict[str, Tensor] = {}
    for key, value in weights.items():
        path, _, side = key.removesuffix(".weight").rpartition(".lora_")
        module = "lora_unet_" + path.replace(".", "_")
        named[f"{module}.lora_{'down' if side == 'A' else 'up'}.weight"] = value
        named[f"{module}.alpha"] = torch.tensor(alpha, dtype=value.dtype)
    return named


def save_lycoris(unet: UNet2DConditionModel, name: str, target: Path, texts: Texts = NONE) -> None:
    """Write the LoRA of this name as LyCORIS and kohya's scripts do.

    Args:
        texts: none; those files are written by diffusers' names.
    """
    named = lycoris_tensors(_weights(unet, name), float(unet.peft_config[name].lora_alpha))
    write_bytes(target / ADAPTER_FILE, save(named))


WRITERS = {DIFFUSERS: save_diffusers, LYCORIS: save_lycoris}
