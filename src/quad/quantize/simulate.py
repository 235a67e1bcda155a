"""quantsim: the float network with every encoded weight and activation sent through its encoding.

The weights are replaced in this network's own modules only: another network that shares them does not see it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from quad.core.profile import Profile
from quad.quantize.affine import FakeQuantizer
from quad.quantize.layers import layers_of
from quad.quantize.observers import transforming


@contextmanager
def simulated(
    network: nn.Module, profile: Profile, component: str, biases: Mapping[str, NDArray[np.float32]] | None = None
) -> Iterator[None]:
    """Quantize `network` while the block runs.

    Slot inputs are not touched here: give the network `dequantize_adapter(quantize_adapter(...))`.

    Args:
        network: float network with Sites.
        profile: a tensor without an encoding stays in float, as it does in the compiled graph.
        component: the network's name in the profile.
        biases: `<module path>.bias` -> corrected bias (`corrected_biases`); the others keep their own.
    """
    encodings = profile.component(component)
    quantizers = {name: FakeQuantizer(encoding) for name, encoding in encodings.items()}
    layers = layers_of(network)
    before = {path: (layer.weight, layer.bias) for path, layer in layers.items()}
    try:
        for path, layer in layers.items():
            weight = encodings.get(f"{path}.weight")
            if weight is not None:
                values = weight.dequantize(weight.quantize(layer.weight.detach().float().cpu().numpy()))
                layer.weight = _parameter(values, layer.weight)
            bias = (biases or {}).get(f"{path}.bias")
            if bias is not None:
                layer.bias = _parameter(bias, layer.weight)
        with transforming(network, quantizers.get):
            yield
    finally:
        for path, (own_weight, own_bias) in before.items():
            layers[path].weight, layers[path].bias = own_weight, own_bias


def _parameter(values: NDArray[np.float32], like: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(torch.from_numpy(values).to(like.device, like.dtype), requires_grad=False)
