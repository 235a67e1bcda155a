"""Weights of a graph that are made when they are read, and not held: an export takes no memory for them.

While torch exports a network, float32 tensors whose memory nobody touches stand in for the weights of its layers: the exporter looks at
shapes alone. In the graph each weight is a constant that asks the layer for its numbers, each time anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import onnx_ir as ir
import torch
from torch import nn

from quad.compile.lazy_tensor import lazy_tensor
from quad.model.slots.held_weight import HeldWeight
from quad.model.slots.layers import layers_of


@contextmanager
def placeholders(module: nn.Module) -> Iterator[Mapping[int, HeldWeight]]:
    """Inside the block, tensors without numbers in place of the weights of layers with Sites; layers that share one share it still.

    Yields:
        Identity of each of them -> the weight it stands in for.
    """
    before = {path: (layer, HeldWeight.of(layer)) for path, layer in layers_of(module).items()}
    empties: dict[tuple[int, int], HeldWeight] = {}
    held: dict[int, HeldWeight] = {}
    try:
        for layer, weight in before.values():
            key = (id(weight.stored), id(weight.step))
            if key not in empties:
                empty = torch.empty(weight.stored.shape, dtype=torch.float32, device=weight.stored.device)
                empties[key] = HeldWeight(nn.Parameter(empty, requires_grad=False))
            empties[key].put(layer)
            held[id(empties[key].stored)] = weight
        yield held
    finally:
        for layer, weight in before.values():
            weight.put(layer)


def lazy_weight(weight: HeldWeight, name: str) -> ir.LazyTensor:
    """The numbers of a weight as a constant that is made when it is read."""
    return lazy_tensor(lambda: weight.numbers().detach().cpu().numpy(), ir.DataType.FLOAT, tuple(weight.stored.shape), name)
