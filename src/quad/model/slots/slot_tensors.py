"""An adapter's slot inputs as tensors that a slotted network reads. Source: docs/adr/0065-own-ranks.md.

Arrays have the ranks of the slots, which are those of the two largest adapters: a network that is run at those multiplies mostly zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from quad.core.padding import at_own_ranks
from quad.core.slots import SlotTable
from quad.model.device import HERE, device_of


def slot_tensors(slots: Mapping[str, NDArray[Any]], table: SlotTable, device: torch.device = HERE) -> dict[str, Tensor]:
    """Slot inputs as float32 tensors at the adapter's own ranks, 0 in a slot that it has nothing in; none of none.

    Copies, in memory as torch aligns it: what a product rounds to may depend on where its operands lie.

    Args:
        slots: graph input name -> array at any rank; those of another network are passed over.
        table: of the network that reads them.
    """
    own = at_own_ranks(slots, table)
    return {name: torch.tensor(np.asarray(values, np.float32), device=device) for name, values in own.items()}


def network_slots(slots: Mapping[str, NDArray[Any]], network: nn.Module) -> dict[str, Tensor]:
    """`slot_tensors` for one network, on its device; none where it has no slots."""
    table: SlotTable | None = getattr(network, "table", None)
    return {} if table is None else slot_tensors(slots, table, device_of(network))
