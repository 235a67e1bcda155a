"""Bias correction in closed form. Source: Nagel et al. 2019, section 4.2; docs/method.md section 5, step 5.

Rounded weights shift the mean of a layer's output by `(W_hat - W) E[x]`; the bias takes that back. It costs nothing at run time.
A layer without a bias is left as it is.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from quad.core.profile import Profile
from quad.core.tensor_names import bias_name, weight_name
from quad.model.slots.layers import Layer, input_sites, layers_of, weight_array
from quad.quantize.observe.observers import Statistics


def corrected_biases(network: nn.Module, component: str, statistics: Statistics, profile: Profile) -> dict[str, NDArray[np.float32]]:
    """`<module path>.bias` -> corrected bias `(out,)`, for every layer with a bias, an encoded weight and observed inputs."""
    corrected: dict[str, NDArray[np.float32]] = {}
    observed, encodings = statistics.sites.get(component, {}), profile.component(component)
    for path, layer in layers_of(network).items():
        encoding = encodings.get(weight_name(path))
        sites = input_sites(path, layer)
        if layer.bias is None or encoding is None or not observed.keys() >= set(sites) or getattr(layer, "groups", 1) != 1:
            continue
        weight = weight_array(layer)
        mean = np.concatenate([statistics.channel_mean(component, site) for site in sites])
        shift = _mean_shift(encoding.dequantize(encoding.quantize(weight)) - weight, mean)
        corrected[bias_name(path)] = (layer.bias.detach().float().cpu().numpy() - shift).astype(np.float32)
    return corrected


def apply_biases(network: nn.Module, biases: dict[str, NDArray[np.float32]]) -> None:
    """Write corrected biases into a network, for good: what the exporter then sees."""
    layers = {bias_name(path): layer for path, layer in layers_of(network).items()}
    for name, values in biases.items():
        layer: Layer = layers[name]
        layer.bias = nn.Parameter(torch.tensor(values, device=layer.weight.device), requires_grad=False)


def _mean_shift(error: NDArray[np.float32], mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """`(out, in, *kernel)` and `(in,)` -> `(out,)`; padding is not counted, which is exact for all but border pixels."""
    per_input = error.astype(np.float64).reshape(*error.shape[:2], -1).sum(axis=2)
    return np.asarray(per_input @ mean)
