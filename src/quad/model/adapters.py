"""LoRA files read for the modules of an opened model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch import nn

from quad.lora.layout import LayerLayout, NetworkLayout, with_skipped
from quad.lora.low_rank import RankLimits
from quad.lora.read import FloatAdapter, read_lora
from quad.model.base.text.clip_skip import skipped_layers


def layout_of(network: nn.Module) -> NetworkLayout:
    """The Linear and Conv2d layers of a network, in module order; weights are fetched from it when they are asked for."""
    layers = {path: module for path, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    return NetworkLayout({path: LayerLayout(tuple(layer.weight.shape), _weight(layer)) for path, layer in layers.items()})


def _weight(layer: nn.Linear | nn.Conv2d) -> Callable[[], NDArray[Any]] | None:
    """Fetches a layer's weight in double precision; None where it has a shape alone."""
    return None if layer.weight.is_meta else lambda: layer.weight.detach().cpu().double().numpy()


def read_adapter(
    name: str, path: Path, unet: nn.Module, allow_unused: bool = False, *, text_encoder: nn.Module | None = None,
    limits: RankLimits | None = None,
) -> FloatAdapter:  # fmt: skip
    """Read a LoRA file (or PEFT / diffusers directory) for a model; see `quad.lora.read.read_lora`.

    Args:
        name: the adapter's name.
        unet: the denoiser it was trained on.
        allow_unused: pass over keys that match nothing (`--allow-unused-keys`), as long as some match.
        text_encoder: the CLIPTextModel; None refuses LoRA of a text encoder.
        limits: the largest rank, and how much of an update may be lost to it.

    Raises:
        InputError, UnsupportedError: as `read_lora`.
    """
    text_layout = None if text_encoder is None else with_skipped(layout_of(text_encoder), skipped_layers(text_encoder))
    return read_lora(name, path, layout_of(unet), allow_unused, text_encoder=text_layout, limits=limits)
