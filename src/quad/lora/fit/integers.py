"""Adapters as integers: balance each one, rescale it to the profile's slot encodings, then write it in them.

`B A = (B / g)(g A)` for every g != 0 (docs/method.md section 3). An adapter file may hold small A and large B, or the reverse; the shared
scale of a slot's A is set by the largest A of any adapter, and the others would use a few levels of it. Balancing gives each adapter the
factors that round best in ranges of their own, at equal halves `max|A| = max|B|`: with shared ranges R_A, R_B the squared relative step of
the product is `(R_A / max|A_i|)^2 + (R_B / max|B_i|)^2`, and `max|A_i| max|B_i|` is given. It looks at one adapter alone, so an adapter
admitted later is balanced the same way. Rescaling (`quad.lora.fit.rescale`) then fits it to the encodings that the profile has
frozen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import final

import msgspec
import numpy as np
from numpy.typing import NDArray

from quad.core.errors import CompatibilityError, InputError, mismatch
from quad.core.profile import Profile
from quad.core.slots import SlotTable
from quad.lora.adapter import FloatAdapter
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
    """Float slot inputs of the balanced adapter, zero-padded; None is the base."""
    return slot_inputs(None if adapter is None else balance(adapter), table)


@final
class BalancedSlots(Mapping[str, dict[str, NDArray[np.float32]]]):
    """Adapter name -> float slot inputs of the balanced adapter, zero-padded when asked for.

    Ten adapters of rank 4 to 128 take 0.4 GB as they are, and ten times that side by side in slots of rank 128.
    """

    def __init__(self, adapters: Sequence[FloatAdapter], table: SlotTable) -> None:
        self._balanced = {adapter.name: balance(adapter) for adapter in adapters}
        self._table = table

    def __getitem__(self, name: str) -> dict[str, NDArray[np.float32]]:
        return slot_inputs(self._balanced[name], self._table)

    def __iter__(self) -> Iterator[str]:
        return iter(self._balanced)

    def __len__(self) -> int:
        return len(self._balanced)


def rescaled_inputs(adapter: FloatAdapter | None, table: SlotTable, profile: Profile) -> dict[str, NDArray[np.float32]]:
    """Float slot inputs of the adapter balanced and rescaled to the profile, zero-padded; None is the base."""
    return slot_inputs(None if adapter is None else rescale(balance(adapter), table, profile), table)


def quantize_adapter(adapter: FloatAdapter | None, table: SlotTable, profile: Profile) -> dict[str, NDArray[np.integer]]:
    """The integers to bind: every slot input in the profile's encoding, zero-padded to the slot's rank.

    Args:
        adapter: any adapter whose slots are in the table, smoothed by the profile's gains (`smooth_adapter`) where it has any; None gives
            exact zeros, which is the base.

    Raises:
        InputError: a weight is NaN or infinite.
        CompatibilityError: a slot input has no encoding, or the adapter's weights do not fit into its range even when rescaled.
    """
    return quantize_inputs("base" if adapter is None else adapter.name, rescaled_inputs(adapter, table, profile), table, profile)


def quantize_inputs(
    name: str, inputs: Mapping[str, NDArray[np.float32]], table: SlotTable, profile: Profile
) -> dict[str, NDArray[np.integer]]:
    """Float slot inputs as they stand, as integers of the profile; `name` is the adapter's.

    Raises:
        CompatibilityError: a slot input has no encoding, or its values do not fit into its range.
    """
    component_of = {graph_input: slot.component for slot in table.slots for graph_input in (slot.a_name, slot.b_name)}
    integers: dict[str, NDArray[np.integer]] = {}
    for graph_input, values in inputs.items():
        encoding = profile.component(component_of[graph_input]).get(graph_input)
        if encoding is None:
            next_step = "build the profile for these slots"
            raise CompatibilityError(mismatch(f"adapter {name!r}", f"an encoding of {graph_input}", "none", next_step))
        scale = encoding.scale[0]
        largest, limit = float(np.abs(values).max(initial=0.0)), scale * encoding.qmax
        if largest > limit + 0.5 * scale:
            next_step = "clipping would weaken it, so build the bundle again with this adapter"
            raise CompatibilityError(
                mismatch(f"adapter {name!r}, {graph_input}", f"weights within {limit:.4g}", f"{largest:.4g}", next_step)
            )
        integers[graph_input] = encoding.quantize(values)
    return integers


def dequantize_adapter(integers: dict[str, NDArray[np.integer]], table: SlotTable, profile: Profile) -> dict[str, NDArray[np.float32]]:
    """The float slot inputs of the simulated network: integers as the graph's DequantizeLinear reads them."""
    component_of = {graph_input: slot.component for slot in table.slots for graph_input in (slot.a_name, slot.b_name)}
    return {name: profile.component(component_of[name])[name].dequantize(values) for name, values in integers.items()}
