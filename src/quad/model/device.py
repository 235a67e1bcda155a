"""The device that torch computes on: what there is, where a network lies, and its free memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quad.core.device import ACCELERATORS, CPU, choose_device

HERE = torch.device(CPU)
OutOfMemory = torch.OutOfMemoryError


def accelerators() -> tuple[str, ...]:
    """Names of the accelerators that torch reaches on this machine."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    return tuple(name for name in ACCELERATORS if there[name])


def open_device(asked: str) -> torch.device:
    """The device that a stage computes on; see `choose_device`.

    Raises:
        UsageError: no such device, or not on this machine.
    """
    return torch.device(choose_device(asked, accelerators()))


def device_of(network: nn.Module) -> torch.device:
    """Where a network's weights lie; the CPU for one that has none."""
    return next((parameter.device for parameter in network.parameters()), HERE)


def moved(tensors: tuple[Tensor, ...], device: torch.device) -> tuple[Tensor, ...]:
    """The tensors on a device; those that lie there are not copied."""
    return tuple(tensor.to(device) for tensor in tensors)


def free_bytes(device: torch.device) -> int | None:
    """Memory of an accelerator that is free; None where torch does not say."""
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else None
