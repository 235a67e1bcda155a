"""The layers that get 4 bits: under a budget of bytes, those whose error is felt least for their size."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from quad.build.calls.recorded_runs import RecordedRuns, one_of_each
from quad.build.olss_tables import with_teachers
from quad.build.request import BuildRequest
from quad.compile.targets import load_target
from quad.core.errors import UsageError, mismatch
from quad.core.slots import UNET, SlotTable
from quad.lora.read import FloatAdapter
from quad.model.base.open import Base
from quad.model.slots.layers import Layer, layers_of, tables_of
from quad.quantize.correct.layer_choice import FourBitLayers, LayerCost, four_bit_paths, within_budget
from quad.quantize.correct.weight_damages import weight_damages
from quad.quantize.encodings.rules import weight_bits
from quad.quantize.observe.calibrate import CalibrationSample
from quad.quantize.observe.input_grams import Key
from quad.quantize.observe.observers import Feed
from quad.quantize.observe.short_floats import computing_in, weights_in
from quad.quantize.observe.side_by_side import side_by_side

SEED = 40_000  # other noise than calibration, sensitivity, rounding and alignment draw
CORRECTED = 0.4  # of the bytes that corrections of all layers would take; no more than these go to corrections (ADR 68)
SHARE = 0.05  # of the weights that may have 4 bits, kept at 8 where nobody says how many bytes there are (ADR 59)
_log = logging.getLogger(__name__)


def choose_layers(
    request: BuildRequest,
    base: Base,
    networks: Mapping[str, nn.Module],
    table: SlotTable,
    adapters: Sequence[FloatAdapter],
    samples: Sequence[CalibrationSample],
) -> FourBitLayers:
    """The layers of all networks that get weights of 4 bits, and those of them that are corrected.

    Args:
        networks: slotted for the adapters alone.

    Raises:
        UsageError: the budget is smaller than what 4 bits take.
    """
    float_type, target, damages = request.statistics, load_target(request.target), dict[Key, float]()
    runs = _recorded(with_teachers(base), networks, table, adapters, samples, float_type)
    for component in (UNET,) if target.integers_only else networks:
        if paths := sorted(four_bit_paths(component, networks[component])):
            calls = runs.calls(component)
            of_paths = weight_damages(networks[component], paths, calls, signed=target.signed_four_bits, float_type=float_type)
            damages |= {(component, path): damage for path, damage in of_paths.items()}
    costs, fixed = layer_costs(networks, damages, request.resolved_correction_rank)
    chosen = within_budget(costs, _budget(request, costs, fixed) - fixed, correction_budget(costs))
    counts = len(chosen.narrow), len(costs), len(chosen.corrected)
    _log.info("4 bits: %d of %d layers, the others keep 8; %d are corrected", *counts)
    return chosen


def layer_costs(networks: Mapping[str, nn.Module], damages: Mapping[Key, float], rank: int) -> tuple[list[LayerCost], int]:
    """The cost of each layer that may have 4 bits, and the bytes of all other weights.

    Args:
        networks: with Sites.
        damages: of the layers that may have 4 bits.
        rank: of the correction in the U-Net.
    """
    costs, fixed = list[LayerCost](), 0
    for component, network in networks.items():
        layers, tables = layers_of(network), tables_of(network)
        fixed += sum(table.weight.numel() * weight_bits(component, path) // 8 for path, table in tables.items())
        for path, layer in layers.items():
            key, weights = (component, path), layer.weight.numel()
            if key in damages:
                mend, back = (correction_bytes(layer, rank), correction_share(layer, rank)) if component == UNET else (0, 0.0)
                costs.append(LayerCost(key=key, damage=damages[key], weights=weights, correction_bytes=mend, correction_share=back))
            else:
                fixed += weights * weight_bits(component, path) // 8
    return costs, fixed


def correction_bytes(layer: Layer, rank: int) -> int:
    """Size of a layer's correction of that rank."""
    outputs, inputs = len(layer.weight), math.prod(layer.weight.shape[1:])
    used = min(rank, outputs, inputs)
    return used * (outputs + inputs + 4)


def correction_share(layer: Layer, rank: int) -> float:
    """The share of a layer's damage that a correction takes back: by the reference model, the root of its part of the rank."""
    return math.sqrt(min(1.0, rank / min(len(layer.weight), math.prod(layer.weight.shape[1:]))))


def _recorded(
    base: Base,
    networks: Mapping[str, nn.Module],
    table: SlotTable,
    adapters: Sequence[FloatAdapter],
    samples: Sequence[CalibrationSample],
    float_type: str,
) -> RecordedRuns:
    """One run of each adapter and of the base, as far as it is needed, computed in that type."""
    chosen = one_of_each(base, samples)
    runs = RecordedRuns(base=base, networks=networks, table=table, adapters=adapters, samples=chosen, seed=SEED)

    def make(feed: Feed) -> None:
        with torch.no_grad(), computing_in(float_type):
            feed.run()

    with weights_in(float_type, networks.values()):
        side_by_side(make, runs.feeds(whole=False))
    return runs


def correction_budget(costs: Sequence[LayerCost]) -> int:
    """The bytes that corrections may take, all together."""
    return int(CORRECTED * sum(cost.correction_bytes for cost in costs))


def default_room(costs: Sequence[LayerCost]) -> int:
    """The bytes that 8 bits and corrections may take beyond 4 where nobody says how many."""
    return int(SHARE * sum(cost.weights for cost in costs) / 2) + correction_budget(costs)


def _budget(request: BuildRequest, costs: Sequence[LayerCost], fixed: int) -> int:
    """Bytes that all weights may take.

    Raises:
        UsageError: the stated budget is smaller than what 4 bits take.
    """
    least = fixed + sum(cost.four_bytes for cost in costs)
    if request.weight_budget is None:
        return least + default_room(costs)
    if request.weight_budget_bytes < least:
        raise UsageError(
            mismatch("--weight-budget", f"at least {least / 1e6:.1f}MB, all layers at 4 bits", request.weight_budget, "raise it")
        )
    return request.weight_budget_bytes
