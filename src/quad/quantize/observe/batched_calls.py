"""Many U-Net calls as few: outputs of a network for given inputs, several calls a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from quad.quantize.observe.side_by_side import side_by_side

TensorInputs = tuple[Tensor, Tensor, Tensor]  # `sample (B, C, h, w)`, `timestep (B,)`, `encoder_hidden_states (B, L, D)`
SlotArrays = Mapping[str, NDArray[np.float32]]

_VALUES = 2**14  # of latents that run as one: beyond that a batch costs memory and saves no time


def batched_forward(network: nn.Module, inputs: Sequence[TensorInputs], slots: SlotArrays) -> list[Tensor]:
    """The network's output `(B, c, h, w)` for every call; no gradients."""
    tensors = {name: torch.tensor(values) for name, values in slots.items()}
    return batched(lambda *batch: network(*batch, tensors), inputs)


def batched(compute: Callable[..., Tensor], inputs: Sequence[TensorInputs]) -> list[Tensor]:
    """Its result `(B, c, h, w)` for every call; no gradients.

    Args:
        compute: takes sample, timestep and text of several calls, see `TensorInputs`.
    """
    together = max(1, _VALUES // max((sample.numel() for sample, _, _ in inputs), default=1))

    def outputs(batch: Sequence[TensorInputs]) -> list[Tensor]:
        with torch.no_grad():
            return list(compute(*concatenate(batch)).split([len(sample) for sample, _, _ in batch]))

    batches = [inputs[first : first + together] for first in range(0, len(inputs), together)]
    return [output for batch in side_by_side(outputs, batches) for output in batch]


def concatenate(inputs: Sequence[TensorInputs]) -> TensorInputs:
    """Several calls as one, along the batch axis."""
    samples, timesteps, texts = zip(*inputs, strict=True)
    return torch.cat(samples), torch.cat(timesteps), torch.cat(texts)
