"""The student of the distillation: a simulated network whose only parameters are one adapter's weights, in their frozen encodings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from quad.core.encoding import Encoding
from quad.model.device import device_of, moved
from quad.quantize.encodings.fake_quantize import FakeQuantizer
from quad.quantize.observe.batched_calls import SlotArrays


class Student(nn.Module):
    """A simulated network with one adapter's weights as its only parameters.

    Args:
        network: slotted, simulated by the caller.
        encodings: of every slot input, frozen.
        start: float slot inputs, of all slots.
        names: those that train.
    """

    def __init__(self, network: nn.Module, *, encodings: Mapping[str, Encoding], start: SlotArrays, names: Sequence[str]) -> None:
        super().__init__()
        self.device = device_of(network)
        self.names = tuple(names)
        self._quantizers = [FakeQuantizer(encodings[name]) for name in names]
        self._start = {name: torch.tensor(values, dtype=torch.float32, device=self.device) for name, values in start.items()}
        self._network = (network,)  # in a tuple, so that its weights are not taken for ours
        self.weights = nn.ParameterList([nn.Parameter(self._start[name].clone()) for name in names])
        self.clip()

    def forward(self, sample: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        """The network's output with the weights in their encodings; inputs and output are on the CPU, wherever the network is."""
        quantized = {name: q(w) for name, q, w in zip(self.names, self._quantizers, self.weights, strict=True)}
        output: Tensor = self._network[0](*moved((sample, timestep, text), self.device), {**self._start, **quantized})
        return output.cpu()

    def clip(self) -> None:
        """Keep every weight within its encoding's range: beyond it no gradient would bring it back."""
        with torch.no_grad():
            for weight, quantizer in zip(self.weights, self._quantizers, strict=True):
                limit = quantizer.encoding.scale[0] * quantizer.encoding.qmax
                weight.clamp_(-limit, limit)

    def arrays(self, weights: Sequence[Tensor]) -> dict[str, NDArray[np.float32]]:
        """Weights in the parameters' order, by name."""
        return {name: weight.detach().cpu().numpy() for name, weight in zip(self.names, weights, strict=True)}
