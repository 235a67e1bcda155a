"""The layers that get 4 bits: under a budget of bytes, those whose error is felt least for their size."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from torch import nn

from quad.build.calls.call_recorder import CallRecorder
from quad.build.olss_tables import with_teachers
from quad.build.request import BuildRequest
from quad.compile.targets import load_target
from quad.core.component_call import ComponentCall, of_component
from quad.core.errors import UsageError, mismatch
from quad.core.slots import UNET, SlotTable
from quad.lora.read import FloatAdapter
from quad.model.base.open import Base
from quad.model.slots.layers import Layer, layers_of, tables_of
from quad.quantize.correct.layer_choice import FourBitLayers, LayerCost, four_bit_paths, weight_damages, within_budget
from quad.quantize.encodings.rules import weight_bits
from quad.quantize.observe.calibrate import CalibrationOptions, CalibrationSample, calibration_feeds
from quad.quantize.observe.input_grams import Key
from quad.quantize.observe.observers import Feed

SEED = 40_000  # other noise than calibration, sensitivity, rounding and alignment draw
CORRECTED = 0.4  # of the bytes that corrections of all layers would take; no more than these go to corrections (ADR 68)
SHARE = 0.05  # of the weights that may have 4 bits, kept at 8 where nobody says how many bytes there are (ADR 59)
CALLS = 3  # of each network, with each adapter and without: the first, the last, and one between
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
    calls, damages = _calls(with_teachers(base), networks, table, adapters, samples), dict[Key, float]()
    target = load_target(request.target)
    for component in (UNET,) if target.integers_only else networks:
        paths, mine = sorted(four_bit_paths(component, networks[component])), of_component(calls, component)
        of_paths = weight_damages(networks[component], paths, mine, signed=target.signed_four_bits) if paths else {}
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


def _calls(
    base: Base, networks: Mapping[str, nn.Module], table: SlotTable, adapters: Sequence[FloatAdapter], samples: Sequence[CalibrationSample]
) -> list[ComponentCall]:
    """Calls of each network along one run of each adapter, and of the base."""
    recorder = CallRecorder.of(adapters, table)
    options = CalibrationOptions(seed=SEED, call_hook=recorder.hook)
    for feed in recorder.follow(_one_of_each(calibration_feeds(base, networks, table, adapters, samples, options))):
        feed.run()
    return recorder.calls(CALLS)


def _one_of_each(feeds: Iterable[Feed]) -> Iterator[Feed]:
    seen = set()
    for feed in feeds:
        if feed.source not in seen:
            seen.add(feed.source)
            yield feed


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
