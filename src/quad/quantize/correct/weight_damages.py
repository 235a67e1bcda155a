"""The damage of each layer's weight: how much its rounding to 4 bits, alone, changes the output, of all layers from one pass back.

    |y' - y|^2 ~ |J E x|^2 = E_u <g_u, E x>^2 ~ E_u sum_o <g_u, E x>_o^2        E = W4 - W

g_u is the gradient of `u^T y` by the layer's output, u random signs, x its input, o an output channel. Errors of two channels have nothing
to do with each other, so their products come to nothing, and the sum over channels is known from one draw of u as well as the square of
the sum from a dozen (ADR 73). An adapter is there for its effect, `y - y_0` with y_0 the output without it, which may be a hundredth of the
output: with the same u, products of y less those of y_0 say what rounding does to that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import cast, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from quad.core.component_call import BASE_SOURCE, ComponentCall
from quad.core.float_type import F32
from quad.model.slots.layers import Layer, layers_of
from quad.quantize.correct.gradient_tap import tap_gradient
from quad.quantize.correct.rounding_errors import ErrorOf, rounding_errors
from quad.quantize.observe.network_call import NetworkCall
from quad.quantize.observe.short_floats import computing_in
from quad.quantize.observe.side_by_side import in_order

EFFECT_COUNTS = 8.0  # an effect's damage counts that often beside its output's (ADR 68)
_FAINT = 1e-3  # of an output's energy: an effect below that counts as this much
_Answer = tuple[Tensor, list[Tensor]]  # an output, and of each weight `<g_u, E x>_o` of each channel


def weight_damages(
    network: nn.Module, paths: Sequence[str], calls: Iterable[ComponentCall], *, signed: bool = False, float_type: str = F32
) -> dict[str, float]:
    """The damage of each of these weights alone, rounded to the nearest of 4 bits.

    Args:
        network: float network with Sites.
        calls: of full-precision runs, of the base and of adapters with their float slots; taken as their turn comes.
        signed: as of `four_bit_encoding`.
        float_type: that what errors add to outputs is computed in, as of `computing_in`; all else is float32.

    Returns:
        Path -> mean over calls of `|y' - y|^2 / |y|^2`, of an adapter's call that of its effect beside it, eight times.
    """
    layers = layers_of(network)
    chosen = [layers[path] for path in paths]
    total, count = np.zeros(len(paths)), 0
    with _tapping(chosen, rounding_errors(chosen, signed=signed), float_type):
        for of_call in in_order(lambda numbered: _damages(network, numbered[1], numbered[0], len(paths)), enumerate(calls)):
            total += of_call
            count += 1
    return dict(zip(paths, (total / max(count, 1)).tolist(), strict=True))


def _damages(network: nn.Module, recorded: ComponentCall, seed: int, count: int) -> NDArray[np.float64]:
    """Of each weight on one call; one pass after the other, so that the activations of one are held."""
    call = NetworkCall.of(network, recorded)
    output, products = _answer(call.bound, count, seed)
    power = _energy(output)
    damages = _squares(products) / power
    if call.slots and recorded.source != BASE_SOURCE:
        plain, without = _answer(call.plain, count, seed)
        effect_power = max(_energy(output - plain), _FAINT * power)
        damages += EFFECT_COUNTS / effect_power * _squares([mine - other for mine, other in zip(products, without, strict=True)])
    return damages


def _answer(call: Callable[[], Tensor], count: int, seed: int) -> _Answer:
    """The call's output, and what comes back of random signs, those of the seed."""
    taps = _Taps(count)
    token = _TAPS.set(taps)
    try:
        with torch.enable_grad():
            output = call()
    finally:
        _TAPS.reset(token)
    signs = torch.randint(0, 2, output.shape, generator=torch.Generator().manual_seed(seed)).float().to(output.device) * 2 - 1
    if output.requires_grad:
        torch.autograd.backward(output, signs, inputs=[taps.anchor])
    return output.detach(), taps.products


@final
class _Taps:
    """Of one pass: `<g_u, E x>_o` of each weight; 0 of one that the output does not hang on.

    `anchor` is a leaf that wants a gradient, so that each tapped tensor lies on a path to it.
    """

    def __init__(self, count: int) -> None:
        self.anchor = torch.zeros((), requires_grad=True)
        self.products = [torch.zeros(1)] * count

    def tapped(self, layer: nn.Module, number: int, output: Tensor, change: Tensor) -> Tensor:
        """A layer's output, which its weight's error would change so."""
        held = [change]  # let go of on the way back

        def take(gradient: Tensor) -> None:
            channels = -1 if isinstance(layer, nn.Linear) else 1
            product = (gradient * held.pop()).movedim(channels, 0).flatten(1).sum(dim=1)
            self.products[number] = self.products[number] + product

        return tap_gradient(output, take, self.anchor.to(output.device))


_TAPS: ContextVar[_Taps | None] = ContextVar("quad_damage_taps", default=None)  # of the pass that is made in this thread


@contextmanager
def _tapping(layers: Sequence[Layer], errors: Sequence[ErrorOf], float_type: str) -> Iterator[None]:
    """While the block runs, outputs of these layers pass the `_Taps` of their thread, with what their weights' errors add there."""

    def tapped(number: int, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if (taps := _TAPS.get()) is None:
            return None
        with torch.no_grad(), computing_in(float_type):
            change = _product(cast(Layer, layer), inputs[0], errors[number]())
        return taps.tapped(layer, number, output, change)

    hooks = [layer.register_forward_hook(partial(tapped, number)) for number, layer in enumerate(layers)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _product(layer: Layer, x: Tensor, error: Tensor) -> Tensor:
    """The output of a layer with this weight and no bias."""
    weight = error if torch.is_autocast_enabled(x.device.type) else error.float()
    if isinstance(layer, nn.Linear):
        return functional.linear(x, weight)
    answer: Tensor = layer._conv_forward(x, weight, None)
    return answer


def _energy(output: Tensor) -> float:
    return float(output.square().sum().clamp(min=1e-30))


def _squares(products: Sequence[Tensor]) -> NDArray[np.float64]:
    return np.array([float(product.square().sum()) for product in products])
