"""Many U-Net calls as few: outputs of a network for given inputs, several calls a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from quad.core.device import batch_that_fits, in_fitting_batches
from quad.model.device import HERE, OutOfMemory, device_of, free_bytes, moved
from quad.model.slots.slot_tensors import network_slots
from quad.quantize.observe.side_by_side import side_by_side

TensorInputs = tuple[Tensor, Tensor, Tensor]  # `sample (B, C, h, w)`, `timestep (B,)`, `encoder_hidden_states (B, L, D)`
SlotArrays = Mapping[str, NDArray[np.float32]]

_VALUES = 2**12  # of latents that run as one: beyond that a batch costs memory, saves no time, and leaves other cores nothing to do
# On an accelerator. At 64x64 latents Stable Diffusion's scores of attention, written out three times, take 100 kB a value of the latent.
_BYTES_A_VALUE, _MOST = 2**17, 32


def batched_forward(network: nn.Module, inputs: Sequence[TensorInputs], slots: SlotArrays) -> list[Tensor]:
    """The network's output `(B, c, h, w)` for every call, on the CPU; no gradients."""
    device = device_of(network)
    tensors = network_slots(slots, network)
    return batched(lambda *batch: network(*moved(batch, device), tensors).cpu(), inputs, device)


def batched(compute: Callable[..., Tensor], inputs: Sequence[TensorInputs], device: torch.device = HERE) -> list[Tensor]:
    """Its result `(B, c, h, w)` for every call; no gradients.

    Args:
        compute: takes sample, timestep and text of several calls, see `TensorInputs`.
        device: where it computes. On an accelerator a batch has as many calls as its free memory holds.
    """

    def outputs(batch: Sequence[TensorInputs]) -> list[Tensor]:
        with torch.no_grad():
            return list(compute(*concatenate(batch)).split([len(sample) for sample, _, _ in batch]))

    values = max((sample.numel() for sample, _, _ in inputs), default=1)
    together = max(1, _VALUES // values)
    if device != HERE:
        free = free_bytes(device)
        together = together if free is None else batch_that_fits(free, _BYTES_A_VALUE * values, _MOST)
        return list(in_fitting_batches(outputs, inputs, together, OutOfMemory))
    batches = [inputs[first : first + together] for first in range(0, len(inputs), together)]
    return [output for batch in side_by_side(outputs, batches) for output in batch]


def concatenate(inputs: Sequence[TensorInputs]) -> TensorInputs:
    """Several calls as one, along the batch axis."""
    samples, timesteps, texts = zip(*inputs, strict=True)
    return torch.cat(samples), torch.cat(timesteps), torch.cat(texts)
