"""Many U-Net calls as few: outputs of a network for given inputs, several calls a batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

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

# Of latents that run as one, four pictures of 256 pixels: weights are widened once for all of them. More cost memory and save little.
_VALUES = 2**14
# On an accelerator. At 64x64 latents Stable Diffusion's scores of attention, written out three times, take 100 kB a value of the latent.
_BYTES_A_VALUE, _MOST = 2**17, 32


def batched_forward(network: nn.Module, inputs: Sequence[TensorInputs], slots: SlotArrays) -> list[Tensor]:
    """The network's output `(B, c, h, w)` for every call, on the CPU; no gradients."""
    return batched_forms(network, [(inputs, slots)], parts=2)[0]


def batched_forms(network: nn.Module, asked: Sequence[tuple[Sequence[TensorInputs], SlotArrays]], parts: int = 1) -> list[list[Tensor]]:
    """`batched_forward` of several forms of an adapter, or of the base beside it, all of them on all cores.

    Args:
        asked: calls, and the slot inputs that they are made with, of each form.
        parts: batches of each form at least: one form alone leaves other cores something to do in two. The bits of an answer hang on it.
    """
    device = device_of(network)

    def answer(tensors: Mapping[str, Tensor], *batch: Tensor) -> Tensor:
        output: Tensor = network(*moved(batch, device), tensors)
        return output.cpu()

    work = [(partial(answer, network_slots(slots, network)), inputs) for inputs, slots in asked]
    if device != HERE:
        return [_in_fitting(compute, inputs, device, parts) for compute, inputs in work]
    pieces = [(number, compute, batch) for number, (compute, inputs) in enumerate(work) for batch in _batches(inputs, parts)]
    answers: list[list[Tensor]] = [[] for _ in work]
    for (number, _, _), outputs in zip(pieces, side_by_side(lambda piece: _outputs(piece[1], piece[2]), pieces), strict=True):
        answers[number] += outputs
    return answers


def batched(compute: Callable[..., Tensor], inputs: Sequence[TensorInputs], device: torch.device = HERE) -> list[Tensor]:
    """Its result `(B, c, h, w)` for every call; no gradients.

    Args:
        compute: takes sample, timestep and text of several calls, see `TensorInputs`.
        device: where it computes. On an accelerator a batch has as many calls as its free memory holds.
    """
    if device != HERE:
        return _in_fitting(compute, inputs, device, 2)
    return [output for batch in side_by_side(partial(_outputs, compute), _batches(inputs, 2)) for output in batch]


def _in_fitting(compute: Callable[..., Tensor], inputs: Sequence[TensorInputs], device: torch.device, parts: int) -> list[Tensor]:
    free = free_bytes(device)
    together = _together(inputs, parts) if free is None else batch_that_fits(free, _BYTES_A_VALUE * _values(inputs), _MOST)
    return list(in_fitting_batches(partial(_outputs, compute), inputs, together, OutOfMemory))


def _outputs(compute: Callable[..., Tensor], batch: Sequence[TensorInputs]) -> list[Tensor]:
    with torch.no_grad():
        return list(compute(*concatenate(batch)).split([len(sample) for sample, _, _ in batch]))


def _values(inputs: Sequence[TensorInputs]) -> int:
    """Of the largest call's latents."""
    return max((sample.numel() for sample, _, _ in inputs), default=1)


def _together(inputs: Sequence[TensorInputs], parts: int) -> int:
    """Calls in a batch, of as few batches as may be, but of so many parts at least; how many cores there are changes none of it."""
    count = max(math.ceil(len(inputs) / max(1, _VALUES // _values(inputs))), min(parts, len(inputs)), 1)
    return max(1, math.ceil(len(inputs) / count))


def _batches(inputs: Sequence[TensorInputs], parts: int) -> list[Sequence[TensorInputs]]:
    together = _together(inputs, parts)
    return [inputs[first : first + together] for first in range(0, len(inputs), together)]


def concatenate(inputs: Sequence[TensorInputs]) -> TensorInputs:
    """Several calls as one, along the batch axis."""
    samples, timesteps, texts = zip(*inputs, strict=True)
    return torch.cat(samples), torch.cat(timesteps), torch.cat(texts)
