"""Equalization: some of an activation's spread between channels moves into the weights, through the norm before. Source: Xiao et al. 2022
(SmoothQuant), Eq. 3-4; docs/method.md section 5, step 4.

`y = W n + B A n` with `n = norm(x)`: the norm's affine is divided by `g` per channel, the columns of W and A are multiplied by it.

| symbol | here |
|---|---|
| s_j | `g`, the gain of channel j: `max|n_j|^alpha / max|W_j|^(1 - alpha)` over all layers that read the norm |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from numpy.typing import NDArray
from torch import Tensor, nn

from quad.core.errors import CompatibilityError, mismatch
from quad.core.tensor_names import input_name
from quad.lora.read import FloatAdapter, LowRank
from quad.model.slots.layers import Layer, layers_of
from quad.model.slots.network import SlottedNetwork
from quad.quantize.observe.observers import transforming

ALPHA = 0.5
LARGEST_GAIN = 16.0  # a channel that is all but silent in the probes must not vanish from the lattice
Channels = Mapping[str, NDArray[np.float64]]  # site -> largest magnitude of each channel, (C,)
Gains = Mapping[str, Sequence[float] | NDArray[np.float32]]  # layer path -> gain of each input channel


@dataclass(frozen=True)
class NormReaders:
    """A norm whose output is read by nothing but these layers: paths in the network."""

    norm: str
    layers: tuple[str, ...]


def norm_readers(unet: nn.Module) -> tuple[NormReaders, ...]:
    """Every norm that can take a gain: those of plain transformer blocks, and the one before their `proj_in`.

    Behind the norms of a resnet comes SiLU, through which no gain passes.
    """
    found = []
    for path, module in unet.named_modules():
        block: Any = module
        if isinstance(module, Transformer2DModel) and block.is_input_continuous and isinstance(block.norm, nn.GroupNorm):
            found.append(NormReaders(f"{path}.norm", (f"{path}.proj_in",)))
        elif isinstance(module, BasicTransformerBlock) and block.norm_type == "layer_norm" and block.pos_embed is None:
            first = ("to_q",) if block.only_cross_attention else ("to_q", "to_k", "to_v")
            found.append(NormReaders(f"{path}.norm1", tuple(f"{path}.attn1.{name}" for name in first)))
            if block.attn2 is not None:
                # Its keys and values read the text, which a slotted network is always given.
                found.append(NormReaders(f"{path}.norm2", (f"{path}.attn2.to_q",)))
            found.append(NormReaders(f"{path}.norm3", (f"{path}.ff.net.0.proj",)))
    modules = dict(unet.named_modules())
    return tuple(one for one in found if _affine(modules.get(one.norm)) and all(path in modules for path in one.layers))


@contextmanager
def hearing_channels(network: SlottedNetwork) -> Iterator[Channels]:
    """What `equalize` wants to know of full-precision runs, complete when the block ends: runs cost, so it listens to those of others."""
    sites = {input_name(one.layers[0]) for one in norm_readers(network.unet)}
    largest: dict[str, NDArray[np.float64]] = {}

    def recorder(name: str) -> Callable[[Tensor], Tensor] | None:
        def record(x: Tensor) -> Tensor:
            channel = 1 if x.ndim == 4 else x.ndim - 1
            found = x.detach().abs().amax(dim=[axis for axis in range(x.ndim) if axis != channel]).double().numpy()
            largest[name] = np.maximum(largest.get(name, 0.0), found)
            return x

        return record if name in sites else None

    with transforming(network, recorder):
        yield largest


def equalize(network: SlottedNetwork, channels: Channels, alpha: float = ALPHA) -> dict[str, NDArray[np.float32]]:
    """Fold gains into norms and weights of this network's own modules; others that share them do not see it.

    The function stays the same once the adapters went through `equalized` with the gains that are returned.

    Args:
        channels: of `hearing_channels`, from runs of all adapters and of the base; a norm that no run reached is left.

    Returns:
        Layer path -> gain of each of its input channels, `(in,)`.
    """
    readers, layers = norm_readers(network.unet), layers_of(network)
    gains: dict[str, NDArray[np.float32]] = {}
    for one in readers:
        activation = channels.get(input_name(one.layers[0]))
        if activation is None:
            continue
        gain = _gain(activation, [layers[path] for path in one.layers], alpha)
        _fold(network.unet.get_submodule(one.norm), [layers[path] for path in one.layers], gain)
        gains.update(dict.fromkeys(one.layers, gain))
    return gains


def fold_gains(network: SlottedNetwork, gains: Gains) -> None:
    """What `equalize` did to a network, done again with the gains that it returned.

    Args:
        gains: of every layer that reads an equalized norm.

    Raises:
        CompatibilityError: the network has no such norm, or one of its readers has no gain.
    """
    layers, left = layers_of(network), set(gains)
    for one in norm_readers(network.unet):
        known = [path for path in one.layers if path in gains]
        if len(known) != len(one.layers) and known:
            raise CompatibilityError(mismatch(one.norm, f"a gain for {', '.join(one.layers)}", ", ".join(known), "build the bundle again"))
        if known:
            _fold(network.unet.get_submodule(one.norm), [layers[path] for path in known], np.asarray(gains[known[0]], np.float32))
            left -= set(known)
    if left:
        raise CompatibilityError(mismatch(sorted(left)[0], "a norm before it that takes a gain", "none", "build the bundle again"))


def equalized(adapter: FloatAdapter, gains: Gains) -> FloatAdapter:
    """The adapter for the equalized network: A's input channels times the gains of its layer."""

    def moved(path: str, pair: LowRank) -> LowRank:
        gain = gains.get(path)
        if gain is None:
            return pair
        by = np.asarray(gain, np.float32).reshape(1, -1, *(1,) * (pair.a.ndim - 2))
        return replace(pair, a=(pair.a * by).astype(np.float32))

    return replace(adapter, weights={path: moved(path, pair) for path, pair in adapter.weights.items()})


def _affine(norm: nn.Module | None) -> bool:
    return isinstance(norm, nn.LayerNorm | nn.GroupNorm) and norm.weight is not None and norm.bias is not None


def _gain(activation: NDArray[np.float64], layers: Sequence[Layer], alpha: float) -> NDArray[np.float32]:
    """The gains of one norm, with geometric mean 1 and none beyond `LARGEST_GAIN` either way."""
    columns = [layer.weight.detach().abs().transpose(0, 1).flatten(1).amax(1).double().numpy() for layer in layers]
    weight = np.max(columns, axis=0)
    logs = alpha * np.log(np.maximum(activation, 1e-8)) - (1.0 - alpha) * np.log(np.maximum(weight, 1e-8))
    bound = np.log(LARGEST_GAIN)
    gain: NDArray[np.float32] = np.exp(np.clip(logs - logs.mean(), -bound, bound)).astype(np.float32)
    return gain


def _fold(norm: nn.Module, layers: Sequence[Layer], gain: NDArray[np.float32]) -> None:
    by = torch.from_numpy(gain)
    owner: Any = norm
    owner.weight = nn.Parameter(owner.weight / by, requires_grad=False)
    owner.bias = nn.Parameter(owner.bias / by, requires_grad=False)
    for layer in layers:
        shape = (1, -1, *(1,) * (layer.weight.ndim - 2))
        layer.weight = nn.Parameter(layer.weight * by.view(shape), requires_grad=False)
