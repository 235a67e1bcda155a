"""Damages of weights are what rounding one layer after the other says, told by one pass back of each call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from quad.build.fixed_threads import fixed_threads
from quad.core.component_call import BASE_SOURCE, UNET_INPUTS, ComponentCall
from quad.core.slots import UNET
from quad.lora.fit.integers import balanced_inputs
from quad.model.base.modules import share_copy
from quad.model.slots.layers import layers_of
from quad.model.slots.network import SlottedNetwork
from quad.quantize.correct import weight_damages as weight_damages_module
from quad.quantize.correct.four_bits import four_bit_encoding
from quad.quantize.correct.layer_choice import FourBitLayers, LayerCost, four_bit_paths, within_budget
from quad.quantize.correct.rounding_errors import rounding_errors
from quad.quantize.correct.weight_damages import EFFECT_COUNTS, weight_damages
from quad.quantize.observe.side_by_side import one_lane
from tests.quantize.conftest import Tiny
from tests.small_model import base as base


def _call(tiny: Tiny, source: str, slots: Mapping[str, NDArray[np.float32]]) -> ComponentCall:
    arrays = dict(zip(UNET_INPUTS, (tensor[:1].numpy() for tensor in tiny.inputs), strict=True))
    return ComponentCall(source=source, inputs=arrays, slots=slots)


Outputs = Callable[[], list[tuple[torch.Tensor, float]]]


def _true_damages(network: SlottedNetwork, paths: list[str], outputs: Outputs) -> list[float]:
    """By rounding one layer after the other."""
    layers, true = layers_of(network), []
    with torch.no_grad():
        exact = outputs()
        for path in paths:
            weight = layers[path].weight
            values = weight.detach().numpy()
            encoding = four_bit_encoding(values)
            layers[path].weight = torch.nn.Parameter(torch.from_numpy(encoding.dequantize(encoding.quantize(values))), requires_grad=False)
            true.append(
                sum(counts * float((y - x).square().sum() / x.square().sum()) for (x, counts), (y, _) in zip(exact, outputs(), strict=True))
            )
            layers[path].weight = weight
    return true


@pytest.mark.parametrize("source", [BASE_SOURCE, "loud"])
def test_gradients_say_what_rounding_one_layer_does(tiny: Tiny, source: str) -> None:
    """To the output, and to what an adapter changes of it."""
    network, inputs = share_copy(tiny.network), [tensor[:1] for tensor in tiny.inputs]
    adapter = next((adapter for adapter in tiny.adapters if adapter.name == source), None)
    slots = balanced_inputs(adapter, tiny.table)
    bound = {name: torch.from_numpy(array) for name, array in slots.items()}

    def outputs() -> list[tuple[torch.Tensor, float]]:
        base = network(*inputs)
        return [(base, 1.0)] if adapter is None else [(with_it := network(*inputs, slots=bound), 1.0), (with_it - base, EFFECT_COUNTS)]

    paths = sorted(four_bit_paths(UNET, network))[::3]
    calls = [_call(tiny, source, slots)] * 4
    told, true = np.array(list(weight_damages(network, paths, calls).values())), np.array(_true_damages(network, paths, outputs))
    assert len(told) > 5
    assert np.corrcoef(told.argsort().argsort(), true.argsort().argsort())[0, 1] > 0.7
    assert 0.4 < told.sum() / true.sum() < 2.5


def test_products_are_those_of_the_weights_own_gradients(tiny: Tiny) -> None:
    """Of one call of the base: torch's gradients times the errors, each output channel's squared. And no weight has a gradient."""
    network, inputs = deepcopy(tiny.network), [tensor[:1] for tensor in tiny.inputs]
    paths, layers = sorted(four_bit_paths(UNET, network)), layers_of(network)
    damages = weight_damages(network, paths, [_call(tiny, BASE_SOURCE, {})])
    assert not any(layer.weight.requires_grad or layer.weight.grad is not None for layer in layers.values())

    errors = [error().float() for error in rounding_errors([layers[path] for path in paths])]
    weights = [layers[path].weight.requires_grad_(True) for path in paths]
    output = network(*inputs)
    signs = torch.randint(0, 2, output.shape, generator=torch.Generator().manual_seed(0)).float() * 2 - 1
    gradients = torch.autograd.grad(output, weights, signs)
    products = [(gradient * error).flatten(1).sum(dim=1) for gradient, error in zip(gradients, errors, strict=True)]
    expected = np.array([float(product.square().sum()) for product in products]) / float(output.detach().square().sum())
    np.testing.assert_allclose(list(damages.values()), expected, rtol=1e-2, atol=1e-6 * expected.max())


def test_an_adapter_that_changes_nothing_adds_no_damage(tiny: Tiny) -> None:
    network, paths = share_copy(tiny.network), sorted(four_bit_paths(UNET, tiny.network))
    zeros = {name: np.zeros_like(array) for name, array in balanced_inputs(tiny.adapters[0], tiny.table).items()}
    alone, beside = (weight_damages(network, paths, [_call(tiny, source, zeros)]) for source in (BASE_SOURCE, tiny.adapters[0].name))
    assert beside == pytest.approx(alone, rel=1e-3)


def test_damages_do_not_hang_on_how_many_calls_are_made_at_once(tiny: Tiny) -> None:
    network, paths = share_copy(tiny.network), sorted(four_bit_paths(UNET, tiny.network))
    slots = balanced_inputs(tiny.adapters[0], tiny.table)
    calls = [_call(tiny, source, slots) for source in (BASE_SOURCE, tiny.adapters[0].name) for _ in range(2)]
    with fixed_threads():
        together = weight_damages(network, paths, calls)
        with one_lane():
            assert weight_damages(network, paths, calls) == together


def test_the_choice_is_the_same_where_errors_are_held_and_where_they_are_not(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    network, call = share_copy(tiny.network), _call(tiny, BASE_SOURCE, {})
    paths = sorted(four_bit_paths(UNET, network))
    sizes = {path: layer.weight.numel() for path, layer in layers_of(network).items()}

    def of(held_bytes: int) -> tuple[list[float], list[FourBitLayers]]:
        monkeypatch.setattr(weight_damages_module, "rounding_errors", partial(rounding_errors, held_bytes=held_bytes))
        damages = weight_damages(network, paths, [call])
        costs = [LayerCost(key=(UNET, path), damage=damage, weights=sizes[path], correction_bytes=0) for path, damage in damages.items()]
        least = sum(cost.four_bytes for cost in costs)
        return list(damages.values()), [within_budget(costs, least + least * share // 100) for share in (2, 5, 10, 20)]

    (anew, expected), (held, chosen) = of(0), of(2**31)
    np.testing.assert_allclose(held, anew, rtol=0.02, atol=1e-4 * max(anew))
    assert chosen == expected


def test_no_more_errors_are_held_than_there_is_room_for() -> None:
    layers = [torch.nn.Linear(4, 3).requires_grad_(False) for _ in range(3)]
    errors = rounding_errors(layers, held_bytes=2 * 12 * 2)
    assert [error().dtype for error in errors] == [torch.bfloat16, torch.bfloat16, torch.float32]
    assert errors[0]() is errors[0]()
    assert errors[2]() is not errors[2]()
