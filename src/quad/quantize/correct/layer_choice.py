"""The layers of a U-Net whose weights get 4 bits, and those that keep 8 because their error is felt most for their size.

    |y' - y|^2 ~ |J e|^2 = E_u <G_u, W4 - W>^2        G_u: gradient of  u^T y  by W, u random signs

So one backward pass says of all weights at once what rounding each of them alone does to the output, as for activation sites in
`quad.quantize.correct.mixed_precision`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from quad.core.encoding import Encoding
from quad.core.slots import UNET
from quad.core.tensor_names import weight_name
from quad.model.device import device_of, moved
from quad.model.slots.layers import Layer, layers_of, widened
from quad.quantize.correct.four_bits import four_bit_encoding
from quad.quantize.correct.mixed_precision import SlotValues
from quad.quantize.encodings.fake_quantize import fake_quantize
from quad.quantize.encodings.rules import rule_for
from quad.quantize.observe.probes import Probe

_BYTE = 8
_DRAWS = 3  # of u, on each call
_LEAST = 1e-3  # bytes: a layer that 8 bits cost nothing goes first
_KEEP = ("*.time_emb_proj",)  # what all channels of a block are moved by: few weights, and every pixel feels their error


@dataclass(frozen=True, kw_only=True)
class LayerCost:
    """A layer that may have 4 bits.

    Args:
        damage: mean over calls of `|y' - y|^2 / |y|^2` with its weight alone at 4 bits.
        weights: how many it has.
        correction_bytes: of what mends it at 4 bits.
    """

    path: str
    damage: float
    weights: int
    correction_bytes: int

    @property
    def four_bytes(self) -> int:
        """Its size at 4 bits."""
        return (self.weights + 1) // 2 + self.correction_bytes

    @property
    def spared_bytes(self) -> int:
        """The bytes that 8 bits would take beside that; below zero for a layer so small that its correction outweighs it."""
        return self.weights - self.four_bytes


def four_bit_paths(network: nn.Module) -> frozenset[str]:
    """Layers that 8 bits are enough for, but for those whose error reaches every pixel of a block.

    Convolutions in groups, and those that are padded by name, stay at 8 bits.
    """
    return frozenset(path for path, layer in layers_of(network).items() if _takes_eight(path) and _is_plain(layer))


def within_budget(costs: Sequence[LayerCost], budget_bytes: int) -> frozenset[str]:
    """Layers that stay at 4 bits where all together may take so many bytes: those whose damage is least for what 8 bits would cost."""
    spare, narrow = budget_bytes - sum(cost.four_bytes for cost in costs), {cost.path for cost in costs}
    for cost in sorted(costs, key=lambda cost: (-cost.damage / max(cost.spared_bytes, _LEAST), cost.path)):
        if cost.spared_bytes <= spare:
            narrow.discard(cost.path)
            spare -= cost.spared_bytes
    return frozenset(narrow)


def weight_damages(
    network: nn.Module, paths: Sequence[str], probes: Mapping[str, Sequence[Probe]], slots: SlotValues, *, signed: bool = False
) -> dict[str, float]:
    """The damage of each of these weights alone, rounded to the nearest of 4 bits.

    Args:
        network: float slotted network.
        probes: source -> calls of full-precision runs; two of each are used.
        slots: source -> float slot inputs of its adapter; a source without any is the base.
        signed: as of `four_bit_encoding`.

    Returns:
        Path -> mean over calls of `|y' - y|^2 / |y|^2`.
    """
    layers, device = layers_of(network), device_of(network)
    generator, damages, calls = torch.Generator().manual_seed(0), np.zeros(len(paths)), 0
    with widened(layers[path] for path in paths):
        weights = [layers[path].weight for path in paths]
        encodings = [four_bit_encoding(weight.detach().cpu().numpy(), signed=signed) for weight in weights]
        for source, all_calls in probes.items():
            tensors = {name: torch.from_numpy(array).to(device) for name, array in slots.get(source, {}).items()}
            for probe in (all_calls[len(all_calls) // 4], all_calls[-1 - len(all_calls) // 4]) if all_calls else ():
                one_call = _Call(network, moved(probe.tensors(), device), tensors)
                damages += one_call.squares(weights, encodings, generator)
                calls += 1
    return dict(zip(paths, (damages / max(calls, 1)).tolist(), strict=True))


@dataclass(frozen=True)
class _Call:
    """One call of the network."""

    network: nn.Module
    inputs: tuple[Tensor, ...]
    slots: Mapping[str, Tensor]

    def squares(self, weights: Sequence[Tensor], encodings: Sequence[Encoding], generator: torch.Generator) -> NDArray[np.float64]:
        """`E_u <G_u, W4 - W>^2 / |y|^2` of each weight."""
        needed = [weight.requires_grad for weight in weights]
        try:
            for weight in weights:
                weight.requires_grad_(True)
            with torch.enable_grad():
                output: Tensor = self.network(*self.inputs, self.slots)
            power, totals = float(output.detach().square().sum().clamp(min=1e-30)), np.zeros(len(weights))
            for draw in range(_DRAWS):
                signs = torch.randint(0, 2, output.shape, generator=generator).float().to(output.device) * 2 - 1
                gradients = torch.autograd.grad(output, weights, signs, retain_graph=draw + 1 < _DRAWS, allow_unused=True)
                changes = [
                    0.0 if g is None else float((g * _error(w, e)).sum()) for g, w, e in zip(gradients, weights, encodings, strict=True)
                ]
                totals += np.square(changes)
            return totals / (power * _DRAWS)
        finally:
            for weight, before in zip(weights, needed, strict=True):
                weight.requires_grad_(before)


def _error(weight: Tensor, encoding: Encoding) -> Tensor:
    return fake_quantize(weight.detach(), encoding) - weight.detach()


def _takes_eight(path: str) -> bool:
    rule = rule_for(UNET, weight_name(path))
    return rule is not None and rule.bits == _BYTE and rule.shape == "channel" and not any(fnmatchcase(path, keep) for keep in _KEEP)


def _is_plain(layer: Layer) -> bool:
    return isinstance(layer, nn.Linear) or (layer.groups == 1 and not isinstance(layer.padding, str))
