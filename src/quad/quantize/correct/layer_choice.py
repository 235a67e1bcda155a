"""The layers whose weights get 4 bits, and those that keep 8 because their error is felt most for their size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from quad.core.tensor_names import weight_name
from quad.model.slots.layers import Layer, layers_of
from quad.quantize.encodings.rules import rule_for
from quad.quantize.observe.input_grams import Key

_BYTE = 8
_LEAST = 1e-3  # bytes: a layer that 8 bits cost nothing goes first
_IN_SIGHT = "vae_decoder"  # keeps 8 bits: its error stands in every picture as it is, and nothing mends it


@dataclass(frozen=True, kw_only=True)
class LayerCost:
    """A layer that may have 4 bits.

    Args:
        key: the component and the layer's path in it.
        damage: of `quad.quantize.correct.weight_damages`.
        weights: how many it has.
        correction_bytes: of what mends it at 4 bits; 0 where nothing does.
        correction_share: of its damage that this is expected to take back.
    """

    key: Key
    damage: float
    weights: int
    correction_bytes: int
    correction_share: float = 0.0

    @property
    def four_bytes(self) -> int:
        """Its size at 4 bits, without its correction."""
        return (self.weights + 1) // 2

    @property
    def spared_bytes(self) -> int:
        """The bytes that 8 bits would take beside that."""
        return self.weights - self.four_bytes


def four_bit_paths(component: str, network: nn.Module) -> frozenset[str]:
    """Layers of a component that 8 bits are enough for.

    Convolutions in groups, those that are padded by name, and the decoder of pictures stay at 8 bits.
    """
    layers = () if component == _IN_SIGHT else layers_of(network).items()
    return frozenset(path for path, layer in layers if _takes_eight(component, path) and _is_plain(layer))


@dataclass(frozen=True, kw_only=True)
class FourBitLayers:
    """Layers by component and path.

    Args:
        narrow: those whose weights get 4 bits.
        corrected: those of them whose error is mended in a slot.
    """

    narrow: frozenset[Key] = frozenset()
    corrected: frozenset[Key] = frozenset()


def within_budget(costs: Sequence[LayerCost], budget_bytes: int, correction_bytes: int = 0) -> FourBitLayers:
    """The layers that stay at 4 bits, and those that are corrected, where all together may take so many bytes.

    A byte goes where it takes back most damage: to a correction, which takes back a share of its layer's, or to 8 bits, which take back
    all, and in place of a correction what that has left.

    Args:
        budget_bytes: of all these layers.
        correction_bytes: that corrections may take of it.
    """
    spare, narrow, corrected = budget_bytes - sum(cost.four_bytes for cost in costs), {cost.key for cost in costs}, set[Key]()
    for step in sorted((step for cost in costs for step in _steps(cost)), key=lambda step: (-step.worth, step.cost.key, step.widens)):
        key = step.cost.key
        if step.taken > spare or (step.replaces and key not in corrected) or (not step.widens and step.taken > correction_bytes):
            continue
        spare -= step.taken
        if step.widens:
            narrow.discard(key)
            corrected.discard(key)
        else:
            corrected.add(key)
        correction_bytes -= 0 if step.widens else step.taken
    return FourBitLayers(narrow=frozenset(narrow), corrected=frozenset(corrected))


@dataclass(frozen=True, kw_only=True)
class _Step:
    """More bytes for a layer.

    Args:
        worth: damage that it takes back for each of them.
        widens: to 8 bits; else a correction.
        replaces: a correction, which its bytes are counted beside.
    """

    cost: LayerCost
    taken: int
    worth: float
    widens: bool
    replaces: bool = False


def _steps(cost: LayerCost) -> list[_Step]:
    """To 8 bits at once, or to a correction first where that is worth more."""
    whole = _Step(cost=cost, taken=cost.spared_bytes, worth=cost.damage / max(cost.spared_bytes, _LEAST), widens=True)
    taken, back = cost.correction_bytes, cost.correction_share * cost.damage
    if not 0 < taken < cost.spared_bytes or back / taken <= whole.worth:
        return [whole]
    rest = cost.spared_bytes - taken
    later = _Step(cost=cost, taken=rest, worth=(cost.damage - back) / rest, widens=True, replaces=True)
    return [_Step(cost=cost, taken=taken, worth=back / taken, widens=False), later]


def _takes_eight(component: str, path: str) -> bool:
    rule = rule_for(component, weight_name(path))
    return rule is not None and rule.bits == _BYTE and rule.shape == "channel"


def _is_plain(layer: Layer) -> bool:
    return isinstance(layer, nn.Linear) or (layer.groups == 1 and not isinstance(layer.padding, str))
