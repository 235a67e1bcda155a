"""SmoothQuant smoothing: some of an activation's spread between channels moves into the weights, through the norm before.

Source: Xiao et al. 2022 (SmoothQuant), Eq. 3-4; docs/method.md section 5, step 4.

`y = W n + B A n` with `n = norm(x)`: the norm's affine is divided by `g` per channel, the columns of W and A are multiplied by it.

| symbol | here |
|---|---|
| s_j | `g`, the scale of channel j: `max|n_j|^alpha / max|W_j|^(1 - alpha)` over all layers that read the norm |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from numpy.typing import NDArray
from torch import Tensor, nn

from quad.core.errors import CompatibilityError, mismatch
from quad.core.tensor_names import input_name
from quad.lora.fit.channel_gains import SmoothingScales
from quad.model.slots.held_weight import HeldWeight
from quad.model.slots.layers import Layer, layers_of
from quad.model.slots.network import SlottedNetwork
from quad.quantize.observe.observers import transforming

ALPHA = 0.5
LARGEST_SCALE = 16.0  # a channel that is all but silent in the probes must not vanish from the lattice
ChannelMaxima = Mapping[str, NDArray[np.float64]]  # site -> largest magnitude of each channel, (C,)


@dataclass(frozen=True)
class NormReaders:
    """A norm whose output is read by nothing but these layers: paths in the network."""

    norm: str
    layers: tuple[str, ...]


def norm_readers(unet: nn.Module) -> tuple[NormReaders, ...]:
    """Every norm that can take scales: those of plain transformer blocks, and the one before their `proj_in`.

    Behind the norms of a resnet comes SiLU, through which no scale passes.
    """
    readers = []
    for path, module in unet.named_modules():
        block: Any = module
        if isinstance(module, Transformer2DModel) and block.is_input_continuous and isinstance(block.norm, nn.GroupNorm):
            readers.append(NormReaders(f"{path}.norm", (f"{path}.proj_in",)))
        elif isinstance(module, BasicTransformerBlock) and block.norm_type == "layer_norm" and block.pos_embed is None:
            first = ("to_q",) if block.only_cross_attention else ("to_q", "to_k", "to_v")
            readers.append(NormReaders(f"{path}.norm1", tuple(f"{path}.attn1.{name}" for name in first)))
            if block.attn2 is not None:
                # Its keys and values read the text, which a slotted network is always given.
                readers.append(NormReaders(f"{path}.norm2", (f"{path}.attn2.to_q",)))
            readers.append(NormReaders(f"{path}.norm3", (f"{path}.ff.net.0.proj",)))
    modules = dict(unet.named_modules())
    return tuple(reader for reader in readers if _affine(modules.get(reader.norm)) and all(path in modules for path in reader.layers))


@contextmanager
def recording_channel_maxima(network: SlottedNetwork) -> Iterator[ChannelMaxima]:
    """The largest magnitudes that `smooth` needs of full-precision runs, complete when the block ends: it records runs that others make."""
    sites = {input_name(reader.layers[0]) for reader in norm_readers(network.unet)}
    largest: dict[str, NDArray[np.float64]] = {}
    alone = Lock()  # runs may be side by side

    def recorder(name: str) -> Callable[[Tensor], Tensor] | None:
        def record(x: Tensor) -> Tensor:
            channel = 1 if x.ndim == 4 else x.ndim - 1
            peaks = x.detach().abs().amax(dim=[axis for axis in range(x.ndim) if axis != channel]).cpu().double().numpy()
            with alone:
                largest[name] = np.maximum(largest.get(name, 0.0), peaks)
            return x

        return record if name in sites else None

    with transforming(network, recorder):
        yield largest


def largest(recorded: Sequence[ChannelMaxima]) -> ChannelMaxima:
    """The maxima over several records of one network's runs."""
    joined: dict[str, NDArray[np.float64]] = {}
    for maxima in recorded:
        joined |= {name: np.maximum(joined.get(name, 0.0), peaks) for name, peaks in maxima.items()}
    return joined


def smooth(network: SlottedNetwork, channels: ChannelMaxima, alpha: float = ALPHA) -> dict[str, NDArray[np.float32]]:
    """Fold scales into norms and weights of this network's own modules; others that share them do not see it.

    The function stays the same once the adapters went through `smooth_adapter` with the scales that are returned.

    Args:
        channels: of `recording_channel_maxima`, from runs of all adapters and of the base; a norm that no run reached is left.

    Returns:
        Layer path -> scale of each of its input channels, `(in,)`.
    """
    layers = layers_of(network)
    scales: dict[str, NDArray[np.float32]] = {}
    for reader in norm_readers(network.unet):
        activation = channels.get(input_name(reader.layers[0]))
        if activation is None:
            continue
        scale = _scales(activation, [layers[path] for path in reader.layers], alpha)
        _fold(network.unet.get_submodule(reader.norm), [layers[path] for path in reader.layers], scale)
        scales.update(dict.fromkeys(reader.layers, scale))
    return scales


def fold_scales(network: SlottedNetwork, scales: SmoothingScales) -> None:
    """Smooth a network again with the scales that `smooth` returned.

    Args:
        scales: of every layer that reads a smoothed norm.

    Raises:
        CompatibilityError: the network has no such norm, or one of its readers has no scales.
    """
    layers, left = layers_of(network), set(scales)
    for reader in norm_readers(network.unet):
        scaled = [path for path in reader.layers if path in scales]
        if len(scaled) != len(reader.layers) and scaled:
            raise CompatibilityError(
                mismatch(reader.norm, f"a gain for {', '.join(reader.layers)}", ", ".join(scaled), "build the bundle again")
            )
        if scaled:
            _fold(network.unet.get_submodule(reader.norm), [layers[path] for path in scaled], np.asarray(scales[scaled[0]], np.float32))
            left -= set(scaled)
    if left:
        raise CompatibilityError(mismatch(sorted(left)[0], "a norm before it that takes a gain", "none", "build the bundle again"))


def _affine(norm: nn.Module | None) -> bool:
    return isinstance(norm, nn.LayerNorm | nn.GroupNorm) and norm.weight is not None and norm.bias is not None


def _scales(activation: NDArray[np.float64], layers: Sequence[Layer], alpha: float) -> NDArray[np.float32]:
    """The scales of one norm, with geometric mean 1 and none beyond `LARGEST_SCALE` either way."""
    columns = [HeldWeight.of(layer).numbers().detach().abs().transpose(0, 1).flatten(1).amax(1).cpu().double().numpy() for layer in layers]
    weight = np.max(columns, axis=0)
    logs = alpha * np.log(np.maximum(activation, 1e-8)) - (1.0 - alpha) * np.log(np.maximum(weight, 1e-8))
    bound = np.log(LARGEST_SCALE)
    scale: NDArray[np.float32] = np.exp(np.clip(logs - logs.mean(), -bound, bound)).astype(np.float32)
    return scale


def _fold(norm: nn.Module, layers: Sequence[Layer], scale: NDArray[np.float32]) -> None:
    owner: Any = norm
    by = torch.from_numpy(scale).to(owner.weight.device)
    owner.weight = nn.Parameter(owner.weight / by, requires_grad=False)
    owner.bias = nn.Parameter(owner.bias / by, requires_grad=False)
    for layer in layers:
        shape = (1, -1, *(1,) * (layer.weight.ndim - 2))
        HeldWeight.of(layer).scaled(by.view(shape)).put(layer)
