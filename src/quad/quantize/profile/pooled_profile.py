"""One profile for all adapters: pool their histograms with equal weight, then choose every range once.

Source: docs/method.md sections 3 and 4 (Unified-LoRA) and 5 (steps 0-2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

from quad.core.encoding import Encoding, encode_range
from quad.core.errors import InputError, mismatch
from quad.core.margins import NO_MARGIN, SCALES_END, SLOT_B, widen
from quad.core.profile import Profile
from quad.core.slots import SlotTable
from quad.core.tensor_names import weight_name
from quad.lora.fit.integers import balanced_inputs
from quad.lora.fit.normalise import slot_units
from quad.lora.read import FloatAdapter
from quad.quantize.encodings.histogram import Density
from quad.quantize.encodings.ranges import RangeOptions, choose_range, column_encoding, weight_encoding
from quad.quantize.encodings.rules import RULES, Rule, rule_for
from quad.quantize.observe.observers import Statistics
from quad.quantize.observe.side_by_side import side_by_side

_CENTRED = "centred"
_SYMMETRIC = ("channel", "symmetric", _CENTRED)

Weights = Mapping[str, Mapping[str, NDArray[np.float32]]]


@dataclass(frozen=True, kw_only=True)
class UnifyOptions:
    """Options of the pooled profile.

    Args:
        lora_bits: 16 or 8, for every slot.
        ranges: how ranges are chosen.
        rules: bits and shape of every tensor.
        parents: digests of what goes in, kept in the profile.
        literal_shared_scale: one scale for a layer's W and the A and B of all its adapters, as the paper may be read; to compare with.
        int16_largest: magnitude that 16-bit weights may have as integers on the target; UNSET for all that the type has.
        integer_scales: the target takes no floats: scales of normalised slots have an encoding too.
        given: component -> name -> encoding of weights that lie on their lattices already.
        corrections: slot path -> the largest scale of the base's correction there, which an encoding of scales has to hold.
    """

    lora_bits: int = 16
    ranges: RangeOptions = field(default_factory=RangeOptions)
    rules: tuple[Rule, ...] = RULES
    parents: Mapping[str, str] = field(default_factory=dict)
    literal_shared_scale: bool = False
    int16_largest: int | msgspec.UnsetType = msgspec.UNSET
    integer_scales: bool = False
    given: Mapping[str, Mapping[str, Encoding]] = field(default_factory=dict)
    corrections: Mapping[str, float] = field(default_factory=dict)


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
            encoding = site_encoding(component, name, statistics.density(component, name), options)
            if encoding is not None:
                encodings.setdefault(component, {})[name] = encoding
    for component, name, encoding in slot_encodings(table, adapters, options):
        encodings.setdefault(component, {})[name] = encoding
    if options.literal_shared_scale:
        _share_scales(encodings, table)
    ordered = {component: dict(sorted(named.items())) for component, named in sorted(encodings.items())}
    return Profile(encodings=ordered, mode="pooled", parents=dict(options.parents))


def byte_weights(weights: Weights, options: UnifyOptions) -> dict[str, dict[str, Encoding]]:
    """Encodings of the weights of 8 bits alone, for graphs whose activations stay floats; others stay floats there too.

    Args:
        weights: as of `unify`.

    Raises:
        InputError: a weight holds NaN or Inf.
    """
    encodings = {component: _weight_encodings(component, tensors, options) for component, tensors in weights.items()}
    return {
        component: {name: encoding for name, encoding in sorted(named.items()) if encoding.bits < 16}
        for component, named in sorted(encodings.items())
    }


def _share_scales(encodings: Mapping[str, dict[str, Encoding]], table: SlotTable) -> None:
    """W, A and B of every slot on one lattice: the coarsest step of the three, so that none is clipped.

    Source: docs/method.md section 3.
    """
    for slot in table.slots:
        named = encodings[slot.component]
        names = [name for name in (weight_name(slot.path), slot.a_name, slot.b_name) if name in named]
        step = max(max(named[name].scale) for name in names)
        for name in names:
            named[name] = msgspec.structs.replace(named[name], scale=(step,) * len(named[name].scale))


def _weight_encodings(component: str, tensors: Mapping[str, NDArray[np.float32]], options: UnifyOptions) -> dict[str, Encoding]:
    def encoding(named: tuple[str, Rule]) -> Encoding:
        name, rule = named
        if known := options.given.get(component, {}).get(name):
            return known
        try:
            if rule.shape == "column":
                return column_encoding(tensors[name])
            if rule.shape != "channel":
                return encode_site(rule, _extremes(tensors[name]))
            return weight_encoding(tensors[name], rule.bits, options.ranges).within(options.int16_largest)
        except ValueError as error:
            raise InputError(mismatch(f"{component}, {name}", "finite weights", "NaN or Inf", "give another model")) from error

    ruled = [(name, rule) for name in tensors if (rule := rule_for(component, name, options.rules)) is not None]
    return {name: of_weight for (name, _), of_weight in zip(ruled, side_by_side(encoding, ruled), strict=True)}


def _extremes(tensor: NDArray[np.float32]) -> tuple[float, float]:
    return float(tensor.min()), float(tensor.max())


def site_encoding(component: str, name: str, density: Density, options: UnifyOptions) -> Encoding | None:
    """The encoding of an activation whose values are spread like this; None where its rule leaves it in float."""
    rule = rule_for(component, name, options.rules)
    if rule is None:
        return None
    return encode_site(rule, rule.fixed or choose_range(density, rule.bits, options.ranges))


def encode_site(rule: Rule, bounds: tuple[float, float]) -> Encoding:
    """The encoding of an activation range by its rule's bits, shape and margin."""
    low, high = widen(bounds, rule.margin)
    encoding = encode_range(low, high, bits=rule.bits, signed=rule.shape != "asymmetric", symmetric=rule.shape in _SYMMETRIC)
    return msgspec.structs.replace(encoding, symmetric=False) if rule.shape == _CENTRED else encoding


def slot_encodings(table: SlotTable, adapters: Sequence[FloatAdapter], options: UnifyOptions) -> list[tuple[str, str, Encoding]]:
    """One symmetric encoding per slot input: the largest magnitude over all adapters, so that none is clipped; B with a margin.

    Of normalised slots A ends at 1 and B at the slot's unit, and scales have an encoding where the target takes no floats.
    """
    if table.normalised:
        return _normalised_encodings(table, adapters, options)
    largest: dict[str, float] = {}
    for adapter in adapters:
        for name, values in balanced_inputs(adapter, table).items():
            largest[name] = max(largest.get(name, 0.0), float(np.abs(values).max(initial=0.0)))
    encodings = []
    for slot in table.slots:
        for name in (slot.a_name, slot.b_name):
            bound, margin = largest.get(name, 0.0), SLOT_B[options.lora_bits] if name == slot.b_name else NO_MARGIN
            low, high = widen((-bound, bound), margin)
            encoding = encode_range(low, high, bits=options.lora_bits, signed=True, symmetric=True)
            encodings.append((slot.component, name, encoding.within(slot.largest)))
    return encodings


def _normalised_encodings(table: SlotTable, adapters: Sequence[FloatAdapter], options: UnifyOptions) -> list[tuple[str, str, Encoding]]:
    units, encodings = slot_units(adapters, table), []
    for path, largest in options.corrections.items() if options.integer_scales else ():
        units[path] = max(units[path], largest / SCALES_END)
    for slot in table.slots:
        for name, end in ((slot.a_name, 1.0), (slot.b_name, units[slot.path])):
            encoding = encode_range(-end, end, bits=options.lora_bits, signed=True, symmetric=True)
            encodings.append((slot.component, name, encoding.within(slot.largest)))
    for name, slots in table.scale_inputs().items() if options.integer_scales else ():
        encoding = encode_range(-SCALES_END, SCALES_END, bits=16, signed=True, symmetric=True)
        encodings.append((slots[0].component, name, encoding.within(options.int16_largest)))
    return encodings
