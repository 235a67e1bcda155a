"""The layers of a network that have an input Site, by the path that the profile names them with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import nn

from quad.model.sites import SKIP_SUFFIX, Site, SplitSite

Layer = nn.Linear | nn.Conv2d
_INPUT = ".in"


def layers_of(network: nn.Module) -> dict[str, Layer]:
    """Module path -> Linear or Conv2d, for every layer that owns a Site named `<module path>.in`."""
    found: dict[str, Layer] = {}
    for module in network.modules():
        if isinstance(module, Layer):
            for child in module.children():
                if isinstance(child, Site | SplitSite) and child.name.endswith(_INPUT):
                    found[child.name.removesuffix(_INPUT)] = module
    return found


def input_sites(path: str, layer: Layer) -> tuple[str, ...]:
    """Names of the Sites that a layer's input passes, in order of channels: one, or two at a skip concat."""
    split = any(isinstance(child, SplitSite) for child in layer.children())
    return (f"{path}{_INPUT}", f"{path}{_INPUT}{SKIP_SUFFIX}") if split else (f"{path}{_INPUT}",)


def weights_of(network: nn.Module) -> dict[str, NDArray[np.float32]]:
    """`<module path>.weight` -> float32 values, output channels first."""
    return {f"{path}.weight": layer.weight.detach().float().cpu().numpy() for path, layer in layers_of(network).items()}
