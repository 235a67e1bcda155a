"""One call of a network with an adapter or without, in torch's tensors where the network lies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quad.core.component_call import ComponentCall
from quad.model.device import device_of, moved
from quad.model.slots.slot_tensors import network_slots


@dataclass(frozen=True, kw_only=True)
class NetworkCall:
    """A recorded call, to be made again.

    Args:
        inputs: in the order of the network's arguments.
        slots: slot inputs by name; empty where the network has none.
    """

    network: nn.Module
    inputs: tuple[Tensor, ...]
    slots: Mapping[str, Tensor]

    @staticmethod
    def of(network: nn.Module, call: ComponentCall) -> NetworkCall:
        """The call, on the network's device."""
        device = device_of(network)
        return NetworkCall(
            network=network,
            inputs=moved(tuple(torch.from_numpy(array) for array in call.inputs.values()), device),
            slots=network_slots(call.slots, network),
        )

    def bound(self) -> Tensor:
        """The output with the slots."""
        output: Tensor = self.network(*self.inputs, slots=self.slots) if self.slots else self.plain()
        return output

    def plain(self) -> Tensor:
        """The output without."""
        output: Tensor = self.network(*self.inputs)
        return output
