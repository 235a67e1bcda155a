"""One call of one network of a pipeline: what goes in and, where it is known, what comes out.

Calls are recorded along runs of the float networks and made again with others: a simulated network, an exported graph, a loaded one. The
same call in torch's tensors, with the teacher's outputs, is `quad.quantize.distill.teacher_calls.TeacherCall`: training reads it hundreds
of times, and its tensors are copies in memory as torch aligns it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from quad.core.slots import UNET

BASE_SOURCE = "base"  # the source of calls without an adapter
UNET_INPUTS = ("sample", "timestep", "encoder_hidden_states")
Inputs = Mapping[str, NDArray[Any]]  # graph input -> array


@dataclass(frozen=True, kw_only=True)
class ComponentCall:
    """One call.

    Args:
        component: the network that is called.
        source: name of the adapter that is bound, or `base`.
        inputs: by graph input, slots not among them. Of the U-Net float32 `sample (B, C, h, w)`, `timestep (1,)` and
            `encoder_hidden_states (B, L, D)`; B is 2 in a guided call (without, with prompt).
        slots: slot inputs by name, float or as the graph takes them; empty where the component has none or they are the caller's to choose.
        expected: the float network's output, `(B, c, h, w)` of the U-Net; None where nobody ran it.
    """

    component: str = UNET
    source: str
    inputs: Inputs
    slots: Inputs = field(default_factory=dict)
    expected: NDArray[Any] | None = None

    @property
    def feed(self) -> dict[str, NDArray[Any]]:
        """Everything the graph reads."""
        return {**self.inputs, **self.slots}


def of_component(calls: Iterable[ComponentCall], component: str) -> list[ComponentCall]:
    """The calls of one network."""
    return [call for call in calls if call.component == component]


def split_batch(inputs: Inputs) -> list[Inputs]:
    """A batch as calls of one row each, as graphs of batch 1 take them; arrays of one row, such as the timestep, go into every call."""
    rows = max(map(len, inputs.values()), default=1)
    return [{name: array if len(array) == 1 else array[row : row + 1] for name, array in inputs.items()} for row in range(rows)]
