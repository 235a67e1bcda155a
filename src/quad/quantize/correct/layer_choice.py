"""The layers whose weights get 4 bits, and those that keep 8 because their error is felt most for their size.

    |y' - y|^2 ~ |J e|^2 = E_u <G_u, W4 - W>^2        G_u: gradient of  u^T y  by W, u random signs

So one backward pass says of all weights at once what rounding each of them alone does to the output, as for activation sites in
`quad.quantize.correct.mixed_precision`. An adapter is there for its effect, `y - y_0` with y_0 the output without it, which may be a
hundredth of the output: the gradient of `u^T (y - y_0)` says what rounding does to that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from quad.core.component_call import BASE_SOURCE, ComponentCall
from quad.core.tensor_names import weight_name
from quad.model.slots.layers import Layer, layers_of, widened
from quad.quantize.correct.four_bits import four_bit_encoding
from quad.quantize.correct.rounding_errors import ErrorOf, rounding_errors
from quad.quantize.encodings.rules import rule_for
from quad.quantize.observe.input_grams import Key
from quad.quantize.observe.network_call import NetworkCall

_BYTE = 8
_DRAWS = 2  # of u, on each call
_LEAST = 1e-3  # bytes: a layer that 8 bits cost nothing goes first
EFFECT_COUNTS = 8.0  # an effect's damage counts that often beside its output's (ADR 68)
_FAINT = 1e-3  # of an output's energy: an effect below that counts as this much
_IN_SIGHT = "vae_decoder"  # keeps 8 bits: its error stands in every picture as it is, and nothing mends it


@dataclass(frozen=True, kw_only=True)
class LayerCost:
    """A layer that may have 4 bits.

    Args:
        key: the component and the layer's path in it.
        damage: of `weight_damages`.
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


def weight_damages(network: nn.Module, paths: Sequence[str], calls: Sequence[ComponentCall], *, signed: bool = False) -> dict[str, float]:
    """The damage of each of these weights alone, rounded to the nearest of 4 bits.

    Args:
        network: float network with Sites.
        calls: of full-precision runs, of the base and of adapters with their float slots.
        signed: as of `four_bit_encoding`.

    Returns:
        Path -> mean over calls of `|y' - y|^2 / |y|^2`, of an adapter's call that of its effect beside it, eight times.
    """
    layers = layers_of(network)
    generator, damages = torch.Generator().manual_seed(0), np.zeros(len(paths))
    with widened(layers[path] for path in paths):
        weights = [layers[path].weight for path in paths]
        encodings = [four_bit_encoding(weight.detach().cpu().numpy(), signed=signed) for weight in weights]
        errors = rounding_errors(weights, encodings)
        for call in calls:
            has_effect = bool(call.slots) and call.source != BASE_SOURCE
            damages += _squares(NetworkCall.of(network, call), weights, errors, generator, has_effect=has_effect)
    return dict(zip(paths, (damages / max(len(calls), 1)).tolist(), strict=True))


def _squares(
    call: NetworkCall, weights: Sequence[Tensor], errors: Sequence[ErrorOf], generator: torch.Generator, *, has_effect: bool
) -> NDArray[np.float64]:
    """`E_u <G_u, W4 - W>^2 / |y|^2` of each weight, and of an adapter's call the same of its effect.

    The effect's product is that of the output less that of the output without the adapter, each from a backward pass of its own.
    """
    totals = np.zeros(len(weights))
    with _products_with_errors(weights, errors) as products_of, torch.enable_grad():
        output, plain = call.bound(), call.plain() if has_effect else None
        power = _energy(output)
        effect_power = 0.0 if plain is None else max(_energy(output - plain), _FAINT * power)
        for draw in range(_DRAWS):
            signs = torch.randint(0, 2, output.shape, generator=generator).float().to(output.device) * 2 - 1
            is_last = draw + 1 == _DRAWS
            products = products_of(output, signs, retain=not is_last)
            totals += np.square(products) / (power * _DRAWS)
            if plain is not None:
                of_effect = products - products_of(plain, signs, retain=not is_last)
                totals += EFFECT_COUNTS * np.square(of_effect) / (effect_power * _DRAWS)
    return totals


class _ProductsOf(Protocol):
    def __call__(self, output: Tensor, signs: Tensor, *, retain: bool) -> NDArray[np.float64]:
        """`<G_u, W4 - W>` of each weight, u the signs."""
        ...


@contextmanager
def _products_with_errors(weights: Sequence[Tensor], errors: Sequence[ErrorOf]) -> Iterator[_ProductsOf]:
    """A gradient becomes a product as soon as it is whole, so that one weight's is held and not the network's."""
    needed, products = [weight.requires_grad for weight in weights], np.zeros(len(weights))

    def reduces_to(number: int) -> Callable[[Tensor], None]:
        def reduce(weight: Tensor) -> None:
            assert weight.grad is not None
            products[number] = _product(weight.grad, errors[number]())
            weight.grad = None

        return reduce

    def products_of(output: Tensor, signs: Tensor, *, retain: bool) -> NDArray[np.float64]:
        products[:] = 0.0  # of a weight that this output does not hang on
        torch.autograd.backward(output, signs, retain_graph=retain, inputs=list(weights))
        return products.copy()

    hooks = [weight.requires_grad_(True).register_post_accumulate_grad_hook(reduces_to(number)) for number, weight in enumerate(weights)]
    try:
        yield products_of
    finally:
        for hook in hooks:
            hook.remove()
        for weight, before in zip(weights, needed, strict=True):
            weight.requires_grad_(before)


def _energy(output: Tensor) -> float:
    return float(output.detach().square().sum().clamp(min=1e-30))


def _product(gradient: Tensor, error: Tensor) -> float:
    return float(torch.dot(gradient.flatten(), error.float().flatten()))


def _takes_eight(component: str, path: str) -> bool:
    rule = rule_for(component, weight_name(path))
    return rule is not None and rule.bits == _BYTE and rule.shape == "channel"


def _is_plain(layer: Layer) -> bool:
    return isinstance(layer, nn.Linear) or (layer.groups == 1 and not isinstance(layer.padding, str))
