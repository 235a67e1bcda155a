"""Which layers keep 8 bits: those whose damage, for their size, is largest, as long as the budget lasts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from quad.core.component_call import BASE_SOURCE, UNET_INPUTS
from quad.model.base.modules import share_copy
from quad.model.slots.layers import layers_of
from quad.quantize.correct.four_bits import four_bit_encoding
from quad.quantize.correct.layer_choice import LayerCost, four_bit_paths, weight_damages, within_budget
from quad.quantize.observe.probe import Probe
from tests.quantize.conftest import Tiny
from tests.small_model import base as base


def _cost(path: str, damage: float, weights: int, correction: int = 0) -> LayerCost:
    return LayerCost(path=path, damage=damage, weights=weights, correction_bytes=correction)


def test_without_room_every_layer_has_4_bits() -> None:
    costs = [_cost("a", 1.0, 100), _cost("b", 2.0, 100)]
    assert within_budget(costs, 100) == {"a", "b"}


@pytest.mark.parametrize(("budget", "narrow"), [(149, {"a", "b"}), (150, {"a"}), (199, {"a"}), (200, set())])
def test_the_most_damage_for_its_bytes_goes_first(budget: int, narrow: set[str]) -> None:
    assert within_budget([_cost("a", 1.0, 100), _cost("b", 2.0, 100)], budget) == narrow


def test_a_layer_that_does_not_fit_makes_way_for_a_smaller_one() -> None:
    assert within_budget([_cost("large", 100.0, 1000), _cost("small", 0.1, 10)], 500 + 10) == {"large"}


def test_what_a_layer_of_8_bits_needs_no_longer_is_its_correction() -> None:
    assert within_budget([_cost("a", 1.0, 100, correction=50)], 100) == set()


@pytest.fixture(scope="module")
def damages(tiny: Tiny) -> tuple[dict[str, float], dict[str, float]]:
    """Of a few layers: as gradients say it, and by rounding one after the other."""
    network = share_copy(tiny.network)
    arrays = {name: tensor[:1].numpy() for name, tensor in zip(UNET_INPUTS, tiny.inputs, strict=True)}
    probe = Probe(source=BASE_SOURCE, task="t", run=0, inputs=arrays, sigma_t=0.5)
    layers = layers_of(network)
    paths = sorted(four_bit_paths(network))[::3]
    told = weight_damages(network, paths, {str(k): [probe] for k in range(8)}, {})
    true = {}
    with torch.no_grad():
        y = network(*probe.tensors())
        for path in paths:
            weight = layers[path].weight
            values = weight.detach().numpy()
            encoding = four_bit_encoding(values)
            layers[path].weight = torch.nn.Parameter(torch.from_numpy(encoding.dequantize(encoding.quantize(values))), requires_grad=False)
            true[path] = float((network(*probe.tensors()) - y).square().sum() / y.square().sum())
            layers[path].weight = weight
    return told, true


def test_gradients_say_what_rounding_one_layer_does(damages: tuple[dict[str, float], dict[str, float]]) -> None:
    told, true = (np.array(list(values.values())) for values in damages)
    assert len(told) > 5
    order_told, order_true = told.argsort().argsort(), true.argsort().argsort()
    assert np.corrcoef(order_told, order_true)[0, 1] > 0.7
    assert 0.4 < told.sum() / true.sum() < 2.5


def test_first_and_last_layers_and_the_time_embedding_are_not_asked(tiny: Tiny) -> None:
    paths = four_bit_paths(tiny.network)
    assert paths
    assert not [path for path in paths if path.startswith(("conv_in", "conv_out", "time_embedding")) or path.endswith("time_emb_proj")]
