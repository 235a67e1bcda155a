"""The layers of the U-Net that get 4 bits: under a budget of bytes, those whose error is felt least for their size."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence

from torch import nn

from quad.build.olss_tables import with_teachers
from quad.build.request import BuildRequest
from quad.compile.targets import load_target
from quad.core.errors import UsageError, mismatch
from quad.core.slots import UNET, SlotTable
from quad.core.tensor_names import weight_name
from quad.lora.fit.integers import BalancedSlots
from quad.lora.read import FloatAdapter
from quad.model.base.open import Base
from quad.model.slots.layers import Layer, layers_of
from quad.quantize.correct.layer_choice import LayerCost, four_bit_paths, weight_damages, within_budget
from quad.quantize.encodings.rules import rule_for
from quad.quantize.observe.calibrate import CalibrationSample
from quad.quantize.observe.probes import ProbeOptions, record_probes

SEED = 40_000  # other noise than calibration, sensitivity, rounding and alignment draw
SHARE = 0.1  # of the weights that may have 4 bits, kept at 8 where nobody says how many bytes there are (ADR 56)
_log = logging.getLogger(__name__)


def choose_layers(
    request: BuildRequest,
    base: Base,
    networks: Mapping[str, nn.Module],
    table: SlotTable,
    adapters: Sequence[FloatAdapter],
    samples: Sequence[CalibrationSample],
) -> frozenset[str]:
    """Paths of the U-Net's layers that get weights of 4 bits.

    Args:
        networks: slotted for the adapters alone.

    Raises:
        UsageError: the budget is smaller than what 4 bits take.
    """
    layers = layers_of(networks[UNET])
    paths = four_bit_paths(networks[UNET])
    rank = request.resolved_correction_rank
    fixed = sum(layer.weight.numel() * _bytes(path) for path, layer in layers.items() if path not in paths)
    sizes = {path: _correction_bytes(layers[path], rank) for path in paths}
    least = fixed + sum(layers[path].weight.numel() // 2 + size for path, size in sizes.items())
    budget = least + int(SHARE * sum(layers[path].weight.numel() for path in paths) / 2)
    if request.weight_budget is not None:
        budget = request.weight_budget_bytes
    if budget < least:
        raise UsageError(
            mismatch("--weight-budget", f"at least {least / 1e6:.1f}MB, all layers at 4 bits", request.weight_budget, "raise it")
        )
    ordered = [path for path in layers if path in paths]
    probes = record_probes(with_teachers(base), networks, table, adapters, samples, ProbeOptions(per_adapter=1, seed=SEED))
    signed = load_target(request.target).signed_four_bits
    damages = weight_damages(networks[UNET], ordered, probes, BalancedSlots(adapters, table), signed=signed)
    costs = [
        LayerCost(path=path, damage=damages[path], weights=layers[path].weight.numel(), correction_bytes=sizes[path]) for path in ordered
    ]
    chosen = within_budget(costs, budget - fixed)
    _log.info("4 bits: %d of %d layers, the others keep 8", len(chosen), len(paths))
    return chosen


def _bytes(path: str) -> int:
    rule = rule_for(UNET, weight_name(path))
    return 4 if rule is None else rule.bits // 8


def _correction_bytes(layer: Layer, rank: int) -> int:
    outputs, inputs = len(layer.weight), math.prod(layer.weight.shape[1:])
    used = min(rank, outputs, inputs)
    return used * (outputs + inputs + 4)
