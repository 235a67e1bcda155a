"""Which layers keep 8 bits: those whose damage, for their size, is largest, as long as the budget lasts."""

from __future__ import annotations

import pytest

from quad.core.slots import UNET
from quad.quantize.correct.layer_choice import FourBitLayers, LayerCost, four_bit_paths, within_budget
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


def test_first_and_last_layers_and_the_time_embedding_are_not_asked(tiny: Tiny) -> None:
    paths = four_bit_paths(UNET, tiny.network)
    assert paths
    assert not [path for path in paths if path.startswith(("conv_in", "conv_out", "time_embedding"))]
