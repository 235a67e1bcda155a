"""The layers of a network that have an input Site, by the path that the profile names them with."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from quad.core.tensor_names import Role, input_name, parse, role_of, skip_input_name, weight_name
from quad.model.slots.sites import Site, SplitSite

Layer = nn.Linear | nn.Conv2d


def layers_of(network: nn.Module) -> dict[str, Layer]:
    """Module path -> Linear or Conv2d, for every layer that owns a Site named `<module path>.in`."""
    layers: dict[str, Layer] = {}
    for module in network.modules():
        if isinstance(module, Layer):
            for child in module.children():
                if isinstance(child, Site | SplitSite) and role_of(child.name) is Role.INPUT:
                    layers[parse(child.name).path] = module
    return layers


def apply_weight(layer: Layer, values: NDArray[np.float32]) -> None:
    """Write a weight `(out, in, *kernel)` into a layer, for good; another layer that shares the one before does not see it."""
    layer.weight = nn.Parameter(torch.from_numpy(values).to(layer.weight.device, layer.weight.dtype), requires_grad=False)


def input_sites(path: str, layer: Layer) -> tuple[str, ...]:
    """Names of the Sites that a layer's input passes, in order of channels: one, or two at a skip concat."""
    split = any(isinstance(child, SplitSite) for child in layer.children())
    return (input_name(path), skip_input_name(path)) if split else (input_name(path),)


def tables_of(network: nn.Module) -> dict[str, nn.Embedding]:
    """Module path -> token table, of every text encoder in the network; other embeddings are constants of its graph."""
    encoders: list[Any] = [module for module in network.modules() if hasattr(module, "get_input_embeddings")]
    tables = {id(module.get_input_embeddings()) for module in encoders}
    return {path: module for path, module in network.named_modules() if isinstance(module, nn.Embedding) and id(module) in tables}


def weights_of(network: nn.Module) -> dict[str, NDArray[np.float32]]:
    """`<module path>.weight` -> float32 values, output channels first, or tokens."""
    owners: dict[str, Layer | nn.Embedding] = {**layers_of(network), **tables_of(network)}
    return {weight_name(path): owner.weight.detach().float().cpu().numpy() for path, owner in owners.items()}
