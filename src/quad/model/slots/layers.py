"""The layers of a network that have an input Site, by the path that the profile names them with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from quad.core.encoding import Encoding
from quad.core.tensor_names import Role, input_name, parse, role_of, skip_input_name, weight_name
from quad.model.slots.held_weight import HeldWeight
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
    HeldWeight(nn.Parameter(torch.from_numpy(values).to(layer.weight.device), requires_grad=False)).put(layer)


def apply_integers(layer: Layer, integers: NDArray[np.integer], encoding: Encoding) -> None:
    """Write a rounded weight into a layer, for good: held as integers where the one before was held in less than float32.

    Args:
        encoding: of 4 bits, or symmetric and of 8.
    """
    if not HeldWeight.of(layer).is_compact:
        apply_weight(layer, encoding.dequantize(integers))
        return
    own = integers if integers.flags.writeable else integers.copy()  # torch shares the memory, and wants to be able to write to it
    HeldWeight.of_integers(torch.from_numpy(own).to(layer.weight.device), encoding).put(layer)


def input_sites(path: str, layer: Layer) -> tuple[str, ...]:
    """Names of the Sites that a layer's input passes, in order of channels: one, or two at a skip concat."""
    split = any(isinstance(child, SplitSite) for child in layer.children())
    return (input_name(path), skip_input_name(path)) if split else (input_name(path),)


def tables_of(network: nn.Module) -> dict[str, nn.Embedding]:
    """Module path -> token table, of every text encoder in the network; other embeddings are constants of its graph."""
    encoders: list[Any] = [module for module in network.modules() if hasattr(module, "get_input_embeddings")]
    tables = {id(module.get_input_embeddings()) for module in encoders}
    return {path: module for path, module in network.named_modules() if isinstance(module, nn.Embedding) and id(module) in tables}


def weight_array(layer: nn.Module) -> NDArray[np.float32]:
    """The float32 numbers of a layer's weight, or of a table."""
    return HeldWeight.of(layer).numbers().detach().cpu().numpy()


class Weights(Mapping[str, NDArray[np.float32]]):
    """`<module path>.weight` -> float32 values, output channels first, or tokens; those of one layer at a time are in memory."""

    def __init__(self, network: nn.Module) -> None:
        owners: dict[str, Layer | nn.Embedding] = {**layers_of(network), **tables_of(network)}
        self._held = {weight_name(path): HeldWeight.of(owner) for path, owner in owners.items()}

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        return self._held[name].numbers().detach().cpu().numpy()

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)


def weights_of(network: nn.Module) -> Weights:
    """The weights of a network as they are now."""
    return Weights(network)
