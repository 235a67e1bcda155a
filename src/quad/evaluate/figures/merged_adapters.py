"""Adapters of kinds that diffusers does not load, added to the weights of the networks by their kind's own formula; nothing is cut."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor, nn

from quad.lora.layout import TEXT_PREFIX
from quad.lora.low_rank import WHOLE
from quad.lora.read import FloatAdapter
from quad.model.adapters import read_adapter


class MergedAdapters:
    """Adapters of one pair of networks, at most one active; the layers are held themselves, whatever wraps them later."""

    def __init__(
        self, unet: nn.Module, text_encoder: nn.Module, files: Mapping[str, Path], *, weights: Mapping[str, float] = MappingProxyType({})
    ) -> None:
        """Read every adapter.

        Args:
            files: name -> LoRA file.
            weights: factors of their updates, where they are not 1.

        Raises:
            InputError, UnsupportedError: as `read_adapter`.
        """
        self._adapters = {name: read_adapter(name, file, unet, text_encoder=text_encoder, limits=WHOLE) for name, file in files.items()}
        self._layers: dict[str, nn.Module] = {}
        for adapter in self._adapters.values():
            for path in adapter.weights:
                network = text_encoder if path.startswith(TEXT_PREFIX) else unet
                self._layers[path] = network.get_submodule(path.removeprefix(TEXT_PREFIX))
        self._own: dict[str, Tensor] = {}
        self._weights = weights

    def __contains__(self, name: object) -> bool:
        """Whether an adapter is one of these."""
        return name in self._adapters

    def use(self, name: str | None) -> None:
        """Make an adapter active, or none; what was active before is taken out again, bit for bit."""
        for path, weight in self._own.items():
            _weight(self._layers[path]).copy_(weight)
        self._own = {}
        if name is not None:
            self._merge(self._adapters[name], self._weights.get(name, 1.0))

    def _merge(self, adapter: FloatAdapter, factor: float) -> None:
        for path, pair in adapter.weights.items():
            weight = _weight(self._layers[path])
            self._own[path] = weight.clone()
            b, a = (part.reshape(len(part), -1).astype(np.float64) for part in (pair.b, pair.a))
            weight.copy_(weight.double() + factor * torch.from_numpy(b @ a).reshape(weight.shape).to(weight.device))


def _weight(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.detach()
