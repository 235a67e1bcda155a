"""One adapter, spelled as each trainer of the world spells it. Plain names are `<path>.lora_A.weight` and `<path>.lora_B.weight`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from quad.lora.module_names import original_names

Tensors = dict[str, Tensor]
Spelling = Callable[[Tensors, nn.Module], Tensors]
ALPHA = 3.0

# Endings of module paths; every one of them is a target of some LoRA that is published for Stable Diffusion 1.5.
TARGETS: Mapping[str, tuple[str, ...]] = {
    "attention": ("to_q", "to_k", "to_v", "to_out.0"),
    "feed-forward": ("ff.net.0.proj", "ff.net.2"),
    "projections": ("proj_in", "proj_out"),
    "convolutions": ("conv_in", "conv_out", "conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv"),
    "time": ("time_embedding.linear_1", "time_embedding.linear_2", "time_emb_proj"),
    "text": ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
}


def targeted(network: nn.Module, targets: tuple[str, ...]) -> dict[str, nn.Linear | nn.Conv2d]:
    return {p: m for p, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d) and p.endswith(targets)}


def strong_lora(network: nn.Module, targets: tuple[str, ...], ranks: tuple[int, ...] = (3, 5), seed: int = 3) -> Tensors:
    """Matrices whose product is as large as a third of the layer's own weight."""
    draw = torch.Generator().manual_seed(seed)
    tensors: Tensors = {}
    for i, (path, layer) in enumerate(targeted(network, targets).items()):
        weight, rank = layer.weight, ranks[i % len(ranks)]
        a = torch.randn(rank, *weight.shape[1:], generator=draw)
        b = torch.randn(weight.shape[0], rank, *(1,) * (weight.ndim - 2), generator=draw)
        size = (b.flatten(1) @ a.flatten(1)).norm()
        tensors[f"{path}.lora_A.weight"] = a
        tensors[f"{path}.lora_B.weight"] = b * (weight.norm() / size / 3)
    return tensors


def pairs(tensors: Tensors) -> dict[str, tuple[Tensor, Tensor]]:
    """Module path to A and B."""
    paths = [key.removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight")]
    return {path: (tensors[f"{path}.lora_A.weight"], tensors[f"{path}.lora_B.weight"]) for path in paths}


def diffusers(tensors: Tensors, _: nn.Module) -> Tensors:
    return {f"unet.{key}": value for key, value in tensors.items()}


def middle_aged(tensors: Tensors, _: nn.Module) -> Tensors:
    return {f"unet.{key}".replace("lora_A", "lora.down").replace("lora_B", "lora.up"): value for key, value in tensors.items()}


def old_diffusers(tensors: Tensors, _: nn.Module) -> Tensors:
    """Attention alone, as its processors' layers."""
    old = {}
    for path, (a, b) in pairs(tensors).items():
        attention, _, leaf = path.replace(".to_out.0", ".to_out").rpartition(".")
        old[f"unet.{attention}.processor.{leaf}_lora.down.weight"] = a
        old[f"unet.{attention}.processor.{leaf}_lora.up.weight"] = b
    return old


def old_diffusers_bare(tensors: Tensors, network: nn.Module) -> Tensors:
    return {key.removeprefix("unet."): value for key, value in old_diffusers(tensors, network).items()}


def _kohya(tensors: Tensors, prefix: str, names: Mapping[str, str]) -> Tensors:
    flat = {}
    for path, (a, b) in pairs(tensors).items():
        name = prefix + names.get(path, path).replace(".", "_")
        flat[f"{name}.lora_down.weight"], flat[f"{name}.lora_up.weight"] = a, b
        flat[f"{name}.alpha"] = torch.tensor(ALPHA)
    return flat


def kohya(tensors: Tensors, _: nn.Module) -> Tensors:
    return _kohya(tensors, "lora_unet_", {})


def kohya_original(tensors: Tensors, network: nn.Module) -> Tensors:
    return _kohya(tensors, "lora_unet_", original_names([p for p, _ in network.named_modules()]))


def lycoris(tensors: Tensors, _: nn.Module) -> Tensors:
    return _kohya(tensors, "lycoris_", {})


def comfy(tensors: Tensors, network: nn.Module) -> Tensors:
    names = original_names([p for p, _ in network.named_modules()])
    renamed = {}
    for path, (a, b) in pairs(tensors).items():
        name = f"diffusion_model.{names[path]}"
        renamed[f"{name}.lora_down.weight"], renamed[f"{name}.lora_up.weight"] = a, b
    return renamed


def text_diffusers(tensors: Tensors, _: nn.Module) -> Tensors:
    return {f"text_encoder.text_model.{key}": value for key, value in tensors.items()}


def text_middle_aged(tensors: Tensors, network: nn.Module) -> Tensors:
    names = text_diffusers(tensors, network)
    return {key.replace("lora_A", "lora_linear_layer.down").replace("lora_B", "lora_linear_layer.up"): v for key, v in names.items()}


def text_old_diffusers(tensors: Tensors, network: nn.Module) -> Tensors:
    """`to_q_lora` for attention, `lora_linear_layer` for the feed-forward."""
    old = {}
    for key, value in text_middle_aged(tensors, network).items():
        for new, old_name in (("q_proj", "to_q"), ("k_proj", "to_k"), ("v_proj", "to_v"), ("out_proj", "to_out")):
            key = key.replace(f".{new}.lora_linear_layer", f".{old_name}_lora")
        old[key] = value
    return old


def text_kohya(tensors: Tensors, _: nn.Module) -> Tensors:
    return _kohya({f"text_model.{key}": value for key, value in tensors.items()}, "lora_te_", {})


def text_kohya_numbered(tensors: Tensors, _: nn.Module) -> Tensors:
    return _kohya({f"text_model.{key}": value for key, value in tensors.items()}, "lora_te1_", {})


UNET_SPELLINGS: Mapping[str, Spelling] = {
    "diffusers": diffusers, "middle-aged": middle_aged, "old diffusers": old_diffusers, "kohya": kohya,
    "kohya, original blocks": kohya_original,
}  # fmt: skip
# No library of ours reads these for Stable Diffusion 1.5; they must mean what diffusers' own spelling means.
OTHER_UNET_SPELLINGS: Mapping[str, Spelling] = {"old diffusers without prefix": old_diffusers_bare, "LyCORIS": lycoris, "ComfyUI": comfy}
TEXT_SPELLINGS: Mapping[str, Spelling] = {
    "diffusers": text_diffusers, "middle-aged": text_middle_aged, "old diffusers": text_old_diffusers, "kohya": text_kohya,
    "kohya te1": text_kohya_numbered,
}  # fmt: skip
