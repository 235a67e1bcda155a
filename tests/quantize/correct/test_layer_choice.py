"""Which layers keep 8 bits: those whose damage, for their size, is largest, as long as the budget lasts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch

from quad.core.component_call import BASE_SOURCE, UNET_INPUTS, ComponentCall
from quad.core.slots import UNET
from quad.lora.fit.integers import balanced_inputs
from quad.model.base.modules import share_copy
from quad.model.slots.layers import layers_of
from quad.model.slots.network import SlottedNetwork
from quad.quantize.correct import layer_choice
from quad.quantize.correct.four_bits import four_bit_encoding
from quad.quantize.correct.layer_choice import (
    EFFECT_COUNTS,
    FourBitLayers,
    LayerCost,
    four_bit_paths,
    weight_damages,
    within_budget,
)
from quad.quantize.correct.rounding_errors import rounding_errors
from tests.quantize.conftest import Tiny
from tests.small_model import base as base


def _cost(path: str, damage: float, weights: int, correction: int = 0) -> LayerCost:
    return LayerCost(key=("unet", path), damage=damage, weights=weights, correction_bytes=correction, correction_share=0.5)


def _narrow(costs: list[LayerCost], budget: int) -> set[str]:
    return {path for _, path in within_budget(costs, budget).narrow}


def test_without_room_every_layer_has_4_bits() -> None:
    costs = [_cost("a", 1.0, 100), _cost("b", 2.0, 100)]
    assert _narrow(costs, 100) == {"a", "b"}


@pytest.mark.parametrize(("budget", "narrow"), [(149, {"a", "b"}), (150, {"a"}), (199, {"a"}), (200, set())])
def test_the_most_damage_for_its_bytes_goes_first(budget: int, narrow: set[str]) -> None:
    assert _narrow([_cost("a", 1.0, 100), _cost("b", 2.0, 100)], budget) == narrow


def test_a_layer_that_does_not_fit_makes_way_for_a_smaller_one() -> None:
    assert _narrow([_cost("large", 100.0, 1000), _cost("small", 0.1, 10)], 500 + 10) == {"large"}


@pytest.mark.parametrize(("budget", "corrected"), [(4, set()), (9, {"a"}), (10, {"b"}), (14, {"b"}), (15, {"a", "b"}), (50, {"a", "b"})])
def test_corrections_go_where_they_take_back_most_for_their_bytes(budget: int, corrected: set[str]) -> None:
    """And a layer that has none takes no part."""
    costs = [_cost("a", 1.0, 100, correction=5), _cost("b", 4.0, 200, correction=10), _cost("text", 1e-3, 100)]
    chosen = within_budget(costs, 200 + budget, correction_bytes=budget)
    assert {path for _, path in chosen.corrected} == corrected
    assert chosen.narrow == {cost.key for cost in costs}


def test_8_bits_take_the_place_of_a_correction_where_there_is_room() -> None:
    costs = [_cost("a", 1.0, 100, correction=5)]
    assert within_budget(costs, 50 + 5, 100) == FourBitLayers(narrow=frozenset({("unet", "a")}), corrected=frozenset({("unet", "a")}))
    assert within_budget(costs, 50 + 50, 100) == FourBitLayers()


def test_no_more_than_their_part_goes_to_corrections() -> None:
    costs = [_cost("a", 1.0, 1000, correction=5), _cost("b", 1.0, 1000, correction=5)]
    assert len(within_budget(costs, 1000 + 400, 5).corrected) == 1


def test_a_layer_that_8_bits_cost_less_than_its_correction_is_never_corrected() -> None:
    costs = [_cost("small", 1.0, 20, correction=30)]
    assert within_budget(costs, 10 + 9, 100).narrow == {("unet", "small")}
    assert not within_budget(costs, 10 + 10, 100).narrow


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

    arrays = {name: tensor.numpy() for name, tensor in zip(UNET_INPUTS, inputs, strict=True)}
    paths = sorted(four_bit_paths(UNET, network))[::3]
    calls = [ComponentCall(source=source, inputs=arrays, slots=slots)] * 12
    told, true = np.array(list(weight_damages(network, paths, calls).values())), np.array(_true_damages(network, paths, outputs))
    assert len(told) > 5
    assert np.corrcoef(told.argsort().argsort(), true.argsort().argsort())[0, 1] > 0.7
    assert 0.4 < told.sum() / true.sum() < 2.5


def test_one_layer_s_gradient_is_held_at_a_time(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    network, product, held = share_copy(tiny.network), layer_choice._product, list[int]()
    weights = [layer.weight for layer in layers_of(network).values()]

    def watched(gradient: torch.Tensor, error: torch.Tensor) -> float:
        held.append(sum(other.grad is not None for other in weights))
        return product(gradient, error)

    monkeypatch.setattr(layer_choice, "_product", watched)
    paths, arrays = sorted(four_bit_paths(UNET, network)), [tensor[:1].numpy() for tensor in tiny.inputs]
    call = ComponentCall(source=BASE_SOURCE, inputs=dict(zip(UNET_INPUTS, arrays, strict=True)), slots={})
    weight_damages(network, paths, [call])
    assert held.count(1) == len(held) >= len(paths)
    assert not any(weight.requires_grad or weight.grad is not None for weight in weights)


def test_the_choice_is_the_same_where_errors_are_held_and_where_they_are_not(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    network, arrays = share_copy(tiny.network), [tensor[:1].numpy() for tensor in tiny.inputs]
    paths = sorted(four_bit_paths(UNET, network))
    call = ComponentCall(source=BASE_SOURCE, inputs=dict(zip(UNET_INPUTS, arrays, strict=True)), slots={})
    sizes = {path: layer.weight.numel() for path, layer in layers_of(network).items()}

    def of(held_bytes: int) -> tuple[list[float], list[FourBitLayers]]:
        monkeypatch.setattr(layer_choice, "rounding_errors", partial(rounding_errors, held_bytes=held_bytes))
        damages = weight_damages(network, paths, [call])
        costs = [_cost(path, damage, sizes[path]) for path, damage in damages.items()]
        least = sum(cost.four_bytes for cost in costs)
        return list(damages.values()), [within_budget(costs, least + least * share // 100) for share in (2, 5, 10, 20)]

    (anew, expected), (held, chosen) = of(0), of(2**31)
    np.testing.assert_allclose(held, anew, rtol=0.02, atol=1e-4 * max(anew))
    assert chosen == expected


def test_no_more_errors_are_held_than_there_is_room_for() -> None:
    weights = [torch.linspace(-1.0, 1.0, 12).reshape(3, 4) * scale for scale in (1.0, 2.0, 3.0)]
    encodings = [four_bit_encoding(weight.numpy()) for weight in weights]
    errors = rounding_errors(weights, encodings, held_bytes=2 * 12 * 2)
    assert [error().dtype for error in errors] == [torch.bfloat16, torch.bfloat16, torch.float32]
    assert errors[0]() is errors[0]()
    assert errors[2]() is not errors[2]()


def test_first_and_last_layers_and_the_time_embedding_are_not_asked(tiny: Tiny) -> None:
    paths = four_bit_paths(UNET, tiny.network)
    assert paths
    assert not [path for path in paths if path.startswith(("conv_in", "conv_out", "time_embedding"))]
