"""Adapters as integers: balance each one, rescale it to the profile's slot encodings, then write it in them.

`B A = (B / g)(g A)` for every g != 0 (docs/method.md section 3). An adapter file may hold small A and large B, or the reverse; the shared
scale of a slot's A is set by the largest A of any adapter, and the others would use a few levels of it. Balancing gives each adapter the
factors that round best in ranges of their own, at equal halves `max|A| = max|B|`: with shared ranges R_A, R_B the squared relative step of
the product is `(R_A / max|A_i|)^2 + (R_B / max|B_i|)^2`, and `max|A_i| max|B_i|` is given. It looks at one adapter alone, so an adapter
admitted later is balanced the same way. Rescaling (`quad.lora.fit.rescale`) then fits it to the encodings that the profile has
frozen. Adapters of normalised slots are normalised (`normalise`) in place of both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, final

import msgspec
import numpy as np
from numpy.typing import NDArray

from quad.core.encoding import Encoding
from quad.core.errors import CompatibilityError, InputError, mismatch
from quad.core.padding import at_own_ranks
from quad.core.profile import Profile
from quad.core.slots import SlotTable
from quad.lora.adapter import FloatAdapter
from quad.lora.fit.normalise import normalised_inputs, profile_units
from quad.lora.fit.rescale import balance_pair, rescale
from quad.lora.fit.slot_inputs import slot_inputs


def integer_slots(table: SlotTable, lora_bits: int, largest: int | msgspec.UnsetType = msgspec.UNSET) -> SlotTable:
    """The same slots with integer graph inputs.

    Args:
        lora_bits: 16 or 8.
        largest: magnitude that 16-bit integers may have on the target; UNSET for all that the type has.
    """
    if lora_bits == 8:
        return table.with_slots(msgspec.structs.replace(slot, dtype="int8") for slot in table.slots)
    return table.with_slots(msgspec.structs.replace(slot, dtype="int16", largest=largest) for slot in table.slots)


def require_finite(adapter: FloatAdapter) -> None:
    """Refuse an adapter that holds NaN or Inf.

    Raises:
        InputError: names the adapter and the slot.
    """
    for path, pair in adapter.weights.items():
        if not (np.isfinite(pair.a).all() and np.isfinite(pair.b).all()):
            where = f"adapter {adapter.name!r}, {path}"
            raise InputError(mismatch(where, "finite weights", "NaN or Inf", "train it again or give another file"))


def balance(adapter: FloatAdapter) -> FloatAdapter:
    """The same function with `max|A| = max|B|` in every slot; a slot whose product is zero becomes zero in both.

    Raises:
        InputError: a weight is NaN or infinite.
    """
    require_finite(adapter)
    return replace(adapter, weights={path: balance_pair(pair) for path, pair in adapter.weights.items()})


def balanced_inputs(adapter: FloatAdapter | None, table: SlotTable) -> dict[str, NDArray[np.float32]]:
    """Float slot inputs of the balanced adapter, zero-padded, or of the normalised one where the table says so; None is the base."""
    if adapter is not None and table.normalised:
        require_finite(adapter)
        return normalised_inputs(adapter, table)
    return slot_inputs(None if adapter is None else balance(adapter), table)


@final
class BalancedSlots(Mapping[str, dict[str, NDArray[np.float32]]]):
    """Adapter name -> `balanced_inputs` at its own ranks, made when asked for.

    Ten adapters of rank 4 to 128 take 0.4 GB as they are, and ten times that side by side in slots of rank 128.
    """

    def __init__(self, adapters: Sequence[FloatAdapter], table: SlotTable) -> None:
        self._adapters = {adapter.name: adapter for adapter in adapters}
        self._table = table
        for adapter in adapters:
            require_finite(adapter)

    def __getitem__(self, name: str) -> dict[str, NDArray[np.float32]]:
        own = at_own_ranks(balanced_inputs(self._adapters[name], self._table), self._table)
        return {name: values.copy() for name, values in own.items()}  # not views of what is padded

    def __iter__(self) -> Iterator[str]:
        return iter(self._adapters)

    def __len__(self) -> int:
        return len(self._adapters)


def rescaled_inputs(adapter: FloatAdapter | None, table: SlotTable, profile: Profile) -> dict[str, NDArray[np.float32]]:
    """Float slot inputs of the adapter balanced and rescaled to the profile, or normalised to it, zero-padded; None is the base."""
    if adapter is not None and table.normalised:
        require_finite(adapter)
        return normalised_inputs(adapter, table, profile_units(table, profile))
    return slot_inputs(None if adapter is None else rescale(balance(adapter), table, profile), table)


def quantize_adapter(adapter: FloatAdapter | None, table: SlotTable, profile: Profile) -> dict[str, NDArray[Any]]:
    """The arrays to bind: every slot input in the profile's encoding, zero-padded to the slot's rank; scales stay float32.

    Args:
        adapter: any adapter whose slots are in the table, smoothed by the profile's gains (`smooth_adapter`) where it has any; None gives
            exact zeros, which is the base.

    Raises:
        InputError: a weight is NaN or infinite.
        CompatibilityError: a slot input has no encoding, or the adapter's weights do not fit into its range even when rescaled.
    """
    return quantize_inputs("base" if adapter is None else adapter.name, rescaled_inputs(adapter, table, profile), table, profile)


def quantize_inputs(name: str, inputs: Mapping[str, NDArray[np.float32]], table: SlotTable, profile: Profile) -> dict[str, NDArray[Any]]:
    """Float slot inputs as they stand, as integers of the profile; `name` is the adapter's. Scales stay float32.

    Raises:
        CompatibilityError: a slot input has no encoding, or its values do not fit into its range.
    """
    encodings, scales = _encodings(table, profile), table.scale_inputs()
    integers: dict[str, NDArray[Any]] = {}
    for graph_input, values in inputs.items():
        encoding = encodings.get(graph_input)
        if encoding is None and graph_input not in scales:
            next_step = "build the profile for these slots"
            raise CompatibilityError(mismatch(f"adapter {name!r}", f"an encoding of {graph_input}", "none", next_step))
        if encoding is not None:
            _require_within(name, graph_input, values, encoding)
        integers[graph_input] = values if encoding is None or graph_input in scales else encoding.quantize(values)
    return integers


def _encodings(table: SlotTable, profile: Profile) -> dict[str, Encoding]:
    """Encoding of every slot input that has one."""
    component_of = {graph_input: slot.component for slot in table.slots for graph_input in (slot.a_name, slot.b_name)}
    component_of |= {graph_input: slots[0].component for graph_input, slots in table.scale_inputs().items()}
    encodings = {name: profile.component(component).get(name) for name, component in component_of.items()}
    return {name: encoding for name, encoding in encodings.items() if encoding is not None}


def _require_within(name: str, graph_input: str, values: NDArray[np.float32], encoding: Encoding) -> None:
    scale = encoding.scale[0]
    largest, limit = float(np.abs(values).max(initial=0.0)), scale * encoding.qmax
    if largest > limit + 0.5 * scale:
        next_step = "clipping would weaken it, so build the bundle again with this adapter"
        raise CompatibilityError(mismatch(f"adapter {name!r}, {graph_input}", f"weights within {limit:.4g}", f"{largest:.4g}", next_step))


def dequantize_adapter(integers: Mapping[str, NDArray[Any]], table: SlotTable, profile: Profile) -> dict[str, NDArray[np.float32]]:
    """The float slot inputs of the simulated network: integers as the graph's DequantizeLinear reads them, scales as they are bound."""
    encodings, scales = _encodings(table, profile), table.scale_inputs()
    values: dict[str, NDArray[np.float32]] = {}
    for name, array in integers.items():
        if name not in scales:
            values[name] = encodings[name].dequantize(array)
        elif name in encodings:
            values[name] = encodings[name].dequantize(encodings[name].quantize(array))
        else:
            values[name] = array
    return values
