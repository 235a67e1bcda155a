"""The stage `round`: weights on their lattices, rounded so that their errors cancel on real inputs, in the networks themselves.

The exporter and the simulated network round them again, to the nearest: to themselves. So nothing of it passes through the profile.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from quad.build.open_and_slot import SlottedModel
from quad.core.encoding import Encoding
from quad.core.profile import Profile
from quad.core.tensor_names import Role, bias_name, paths_with, weight_name
from quad.model.slots.layers import Layer, apply_integers, layers_of, weight_array
from quad.quantize.correct.rounding import compensated_integers
from quad.quantize.correct.simulate import mark_lattice
from quad.quantize.observe.input_grams import Grams, InputGram, Key
from quad.quantize.observe.side_by_side import side_by_side

_PIECE = "rounded"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RoundedLayer:
    """A weight `(out, in, *kernel)` as integers, and the mean of its error in the layer's output `(out,)` on the inputs seen."""

    integers: NDArray[np.integer]
    shift: NDArray[np.float32]


def round_weights(model: SlottedModel, profile: Profile, grams: Callable[[], Grams], *, correct_biases: bool) -> None:
    """Write compensated weights, and their biases, into the networks of `model`; others that share theirs do not see it.

    Args:
        grams: of the inputs of all layers with a weight of 8 bits that samples reach; asked for unless an earlier run has rounded.
        correct_biases: the mean error of each layer is taken out of its bias.
    """
    piece = model.cache.read(_PIECE)
    rounded = _of_arrays(piece[1]) if piece is not None else _rounded(model, profile, grams())
    if piece is None:
        model.cache.write(_PIECE, None, _arrays(rounded))
    layers = {component: layers_of(network) for component, network in model.networks.items()}
    for (component, path), result in rounded.items():
        layer, encoding = layers[component][path], profile.component(component)[weight_name(path)]
        apply_integers(layer, result.integers, encoding)
        mark_lattice(layer.weight, encoding)
        if correct_biases and layer.bias is not None:
            layer.bias = nn.Parameter(layer.bias - torch.from_numpy(result.shift).to(layer.bias.device), requires_grad=False)
    _log.info("weights of %d layers rounded with compensation", len(rounded))


def _rounded(model: SlottedModel, profile: Profile, grams: Grams) -> dict[Key, RoundedLayer]:
    """Every layer with a weight of 8 bits that the samples reach."""
    layers = {component: layers_of(network) for component, network in model.networks.items()}
    sharing: dict[int, list[Key]] = {}  # layers by the matrix that they share
    for key, gram in grams.items():
        sharing.setdefault(id(gram), []).append(key)
    results = side_by_side(
        lambda keys: _round([(layers[component][path], _encoding(profile, (component, path))) for component, path in keys], grams[keys[0]]),
        sharing.values(),
    )
    rounded = {key: result for keys, group in zip(sharing.values(), results, strict=True) for key, result in zip(keys, group, strict=True)}
    return {key: rounded[key] for key in grams}


def _encoding(profile: Profile, key: Key) -> Encoding:
    return profile.component(key[0])[weight_name(key[1])]


def _round(layers: Sequence[tuple[Layer, Encoding]], gram: InputGram) -> list[RoundedLayer]:
    """The weights of layers with the same inputs, rounded as one that has all their outputs."""
    weights = [weight_array(layer) for layer, _ in layers]
    scales = [np.broadcast_to(encoding.scale, len(weight)) for weight, (_, encoding) in zip(weights, layers, strict=True)]
    scale = np.concatenate(scales)
    every = msgspec.structs.replace(layers[0][1], scale=tuple(map(float, scale)), zero_point=(0,) * len(scale), axis=0)
    integers = compensated_integers(np.concatenate(weights), every, gram.grams)
    parts = np.split(integers, np.cumsum([len(weight) for weight in weights])[:-1])
    rounded, mean = [], gram.mean.numpy()
    for weight, (_, encoding), part in zip(weights, layers, parts, strict=True):
        error = (encoding.dequantize(part) - weight).reshape(len(weight), -1).astype(np.float64)
        rounded.append(RoundedLayer(part, (error @ mean).astype(np.float32)))
    return rounded


def _arrays(rounded: Mapping[Key, RoundedLayer]) -> dict[str, NDArray[Any]]:
    """All results by name, to keep."""
    weights = {f"{component}/{weight_name(path)}": result.integers for (component, path), result in rounded.items()}
    shifts = {f"{component}/{bias_name(path)}": result.shift for (component, path), result in rounded.items()}
    return {**weights, **shifts}


def _of_arrays(arrays: Mapping[str, NDArray[Any]]) -> dict[Key, RoundedLayer]:
    """The results of `_arrays`."""
    rounded: dict[Key, RoundedLayer] = {}
    for full_name, integers in arrays.items():
        component, _, name = full_name.partition("/")
        for path in paths_with(Role.WEIGHT, [name]):
            rounded[component, path] = RoundedLayer(integers, arrays[f"{component}/{bias_name(path)}"])
    return rounded
