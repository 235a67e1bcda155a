"""One profile for all adapters: pool their histograms with equal weight, then choose every range once.

Source: method.md sections 3 and 4 (Unified-LoRA) and 5 (steps 0-2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from quad.core.encoding import Encoding, encode_range
from quad.core.errors import InputError, mismatch
from quad.core.profile import Profile
from quad.core.slots import SlotTable
from quad.model.lora import FloatAdapter
from quad.quantize.adapters import balanced_inputs
from quad.quantize.histogram import Density
from quad.quantize.observers import Statistics
from quad.quantize.ranges import RangeOptions, choose_range, weight_encoding
from quad.quantize.rules import RULES, Rule, rule_for

Weights = Mapping[str, Mapping[str, NDArray[np.float32]]]


@dataclass(frozen=True)
class UnifyOptions:
    """What the profile is made by.

    Args:
        lora_bits: 16 or 8, for every slot.
        ranges: how ranges are chosen.
        rules: bits and shape of every tensor.
        parents: digests of what goes in, kept in the profile.
    """

    lora_bits: int = 16
    ranges: RangeOptions = field(default_factory=RangeOptions)
    rules: tuple[Rule, ...] = RULES
    parents: Mapping[str, str] = field(default_factory=dict)


def unify(
    statistics: Statistics, weights: Weights, table: SlotTable, adapters: Sequence[FloatAdapter], options: UnifyOptions | None = None
) -> Profile:
    """The pooled profile: weights, slots and activation sites of every component.

    Args:
        statistics: of all components, one source per adapter.
        weights: component -> `<module path>.weight` -> float32, output channels first (`weights_of`).
        table: the slots; their encodings are the largest magnitude over the balanced adapters.
        adapters: all that the profile must serve.

    Raises:
        InputError: statistics are empty, or a weight or adapter holds NaN or Inf.
    """
    options = options or UnifyOptions()
    if not any(statistics.sites.values()):
        raise InputError(mismatch("profile", "statistics of at least one site", "none", "run the calibration first"))
    encodings: dict[str, dict[str, Encoding]] = {}
    for component, tensors in weights.items():
        encodings.setdefault(component, {}).update(_weight_encodings(component, tensors, options))
    for component, sites in statistics.sites.items():
        for name in sites:
            encoding = _site_encoding(component, name, statistics.density(component, name), options)
            if encoding is not None:
                encodings.setdefault(component, {})[name] = encoding
    for component, name, encoding in _slot_encodings(table, adapters, options):
        encodings.setdefault(component, {})[name] = encoding
    ordered = {component: dict(sorted(named.items())) for component, named in sorted(encodings.items())}
    return Profile(ordered, mode="pooled", parents=dict(options.parents))


def _weight_encodings(component: str, tensors: Mapping[str, NDArray[np.float32]], options: UnifyOptions) -> dict[str, Encoding]:
    found: dict[str, Encoding] = {}
    for name, tensor in tensors.items():
        rule = rule_for(component, name, options.rules)
        if rule is None:
            continue
        try:
            found[name] = weight_encoding(tensor, rule.bits, options.ranges)
        except ValueError as error:
            raise InputError(mismatch(f"{component}, {name}", "finite weights", "NaN or Inf", "give another model")) from error
    return found


def _site_encoding(component: str, name: str, density: Density, options: UnifyOptions) -> Encoding | None:
    rule = rule_for(component, name, options.rules)
    if rule is None:
        return None
    low, high = rule.fixed or choose_range(density, rule.bits, options.ranges)
    signed = rule.shape != "asymmetric"
    return encode_range(low, high, bits=rule.bits, signed=signed, symmetric=signed)


def _slot_encodings(table: SlotTable, adapters: Sequence[FloatAdapter], options: UnifyOptions) -> list[tuple[str, str, Encoding]]:
    """One symmetric encoding per slot input: the largest magnitude over all adapters, so that no adapter is clipped."""
    largest: dict[str, float] = {}
    for adapter in adapters:
        for name, values in balanced_inputs(adapter, table).items():
            largest[name] = max(largest.get(name, 0.0), float(np.abs(values).max(initial=0.0)))
    found = []
    for slot in table.slots:
        for name in (slot.a_name, slot.b_name):
            bound = largest.get(name, 0.0)
            found.append((slot.component, name, encode_range(-bound, bound, bits=options.lora_bits, signed=True, symmetric=True)))
    return found
