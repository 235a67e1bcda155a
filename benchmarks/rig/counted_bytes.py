"""Bytes of a bundle, counted from the shapes of its networks on torch's meta device.

Weights in the bits that a build gives them; scales and zero points as graphs hold them and again as the profile's text; all other
parameters as float32. Nodes of graphs, slots, tokenizer and stored calls are left out: some megabytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from quad.build.four_bits.choose_layers import correction_budget, default_room, layer_costs
from quad.model.slots.layers import layers_of, tables_of
from quad.quantize.correct.layer_choice import four_bit_paths
from quad.quantize.encodings.rules import weight_bits

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")
GRAPH_BYTES = {8: 5, 4: 4.5}  # of a channel's scale and zero point
_TEXT_BYTES = 23  # of the same as text: a float32 in decimals, and a number of one digit


def eight_bit_bytes(component: str, network: nn.Module) -> float:
    """Of a component, with Sites, at W8A16."""
    weights: Mapping[str, nn.Module] = {**layers_of(network), **tables_of(network)}
    return other_bytes(network, GRAPH_BYTES[8]) + sum(weight_bits(component, path) / 8 * _size(module) for path, module in weights.items())


def other_bytes(network: nn.Module, per_channel: float) -> float:
    """Of scales, zero points and parameters that are no weights.

    Args:
        per_channel: bytes of a channel's scale and zero point in the graph.
    """
    layers, tables = layers_of(network), tables_of(network)
    channels = sum(len(layer.weight) for layer in layers.values())
    weights = sum(_size(module) for module in (*layers.values(), *tables.values()))
    others = sum(parameter.numel() for parameter in network.parameters()) - weights
    return 4.0 * others + channels * (per_channel + _TEXT_BYTES)


@dataclass(frozen=True, kw_only=True)
class FourBitBytes:
    """What all adapters share at W4A16.

    Args:
        least: component -> bytes with each layer that may have 4 bits at 4.
        room: bytes beyond that, of 8 bits for the layers that keep them and of corrections.
        correction: the most that corrections take of it.
    """

    least: Mapping[str, float]
    room: int
    correction: int

    @property
    def total(self) -> float:
        """All of it."""
        return sum(self.least.values()) + self.room


def four_bit_bytes(parts: Mapping[str, nn.Module], rank: int) -> FourBitBytes:
    """Of networks with Sites at W4A16.

    Args:
        rank: of the correction.
    """
    damages = {(name, path): 0.0 for name, network in parts.items() for path in four_bit_paths(name, network)}
    costs, _ = layer_costs(parts, damages, rank)
    least = dict[str, float]()
    for name, network in parts.items():
        mine, fixed = layer_costs({name: network}, damages, rank)
        least[name] = fixed + sum(cost.four_bytes for cost in mine) + other_bytes(network, GRAPH_BYTES[4])
    return FourBitBytes(least=least, room=default_room(costs), correction=correction_budget(costs))


def adapter_bytes(unet: nn.Module, rank: int, bits: int = 16) -> int:
    """Of A and B on all projections of attention."""
    layers = [layer for path, layer in layers_of(unet).items() if path.endswith(PROJECTIONS)]
    return sum(rank * (layer.weight.shape[0] + layer.weight.shape[1]) * bits // 8 for layer in layers)


def _size(module: nn.Module) -> int:
    weight: torch.Tensor = module.weight  # type: ignore[assignment]
    return weight.numel()
