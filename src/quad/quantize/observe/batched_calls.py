"""Many U-Net calls as few: outputs of a network for given inputs, several calls a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Inputs = tuple[Tensor, Tensor, Tensor]  # `sample (B, C, h, w)`, `timestep (B,)`, `encoder_hidden_states (B, L, D)`
SlotArrays = Mapping[str, NDArray[np.float32]]

_VALUES = 2**14  # of latents that run as one: beyond that a batch costs memory and saves no time


def answers(network: nn.Module, inputs: Sequence[Inputs], slots: SlotArrays) -> list[Tensor]:
    """The network's output `(B, c, h, w)` for every call; no gradients."""
    tensors = {name: torch.tensor(values) for name, values in slots.items()}
    found: list[Tensor] = []
    together = max(1, _VALUES // max((sample.numel() for sample, _, _ in inputs), default=1))
    with torch.no_grad():
        for first in range(0, len(inputs), together):
            some = inputs[first : first + together]
            found += network(*joined(some), tensors).split([len(x[0]) for x in some])
    return found


def joined(inputs: Sequence[Inputs]) -> Inputs:
    """Several calls as one, along the batch axis."""
    samples, timesteps, texts = zip(*inputs, strict=True)
    return torch.cat(samples), torch.cat(timesteps), torch.cat(texts)
