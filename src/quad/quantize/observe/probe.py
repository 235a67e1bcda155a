"""One call of the U-Net along a full-precision run, to compare networks on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quad.core.component_call import UNET_INPUTS, ComponentCall

Probes = Mapping[str, Sequence["Probe"]]  # source -> its calls in order of runs and steps


@dataclass(frozen=True, kw_only=True)
class Probe(ComponentCall):
    """One U-Net call of a full-precision run, and where in the run it stands.

    Args:
        task: of the run.
        run: number of the adapter's run; the probes of one run are not independent.
        sigma_t: standard deviation of the noise in `x_t`, `sqrt(1 - abar_t)`.
        without: what the float network gives with the zero adapter, in the form of `expected`; None where nobody has asked it.
    """

    task: str
    run: int
    sigma_t: float
    without: NDArray[np.float32] | None = None

    @property
    def timestep(self) -> float:
        return float(self.inputs["timestep"][0])

    def row(self, number: int) -> Probe:
        """One picture's part of the call with its answers, counted on from the first where there are fewer."""
        first = number % len(self.inputs["sample"])
        rows = slice(first, first + 1)
        return replace(
            self,
            inputs={name: values if name == "timestep" else values[rows] for name, values in self.inputs.items()},
            expected=None if self.expected is None else self.expected[rows],
            without=None if self.without is None else self.without[rows],
        )

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """`sample (B, C, h, w)`, `timestep (B,)`, `encoder_hidden_states (B, L, D)`, as the slotted network takes them.

        Copies, in memory as torch aligns it: what a matrix product rounds to may depend on where its operands lie, and training that
        goes on from a checkpoint is to end bit for bit where it would have ended.
        """
        sample, timestep, text = (torch.tensor(self.inputs[name]) for name in UNET_INPUTS)
        return sample, timestep.expand(len(sample)), text


def one_side_each(calls: Sequence[Probe]) -> list[Probe]:
    """One picture's part of every call, the two sides of guidance in turns: they begin at one latent, and err much alike.

    Source: docs/adr/0077-one-side-in-batches.md.
    """
    return [call.row(number) for number, call in enumerate(calls)]
