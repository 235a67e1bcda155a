"""The calls that calibration made of the four networks, kept to run the exported graphs on the same inputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar, final

import numpy as np
from numpy.typing import NDArray

from quad.core.component_call import ComponentCall, split_batch
from quad.core.correction import place_correction
from quad.core.profile import Profile
from quad.core.slots import SlotTable
from quad.lora.fit.integers import balanced_inputs, dequantize_adapter, rescaled_inputs
from quad.lora.fit.slot_inputs import slot_inputs
from quad.lora.read import FloatAdapter
from quad.quantize.observe.observers import Feed

PER_SOURCE = 12  # calls of one component that are kept of each adapter and of the base, spread over all that were made
Item = TypeVar("Item")
_Shapes = tuple[tuple[int, ...], ...]


@final
class CallRecorder:
    """Records every call of a calibration.

    Args:
        slots: adapter name -> its float slot inputs, balanced as calibration gives them; the base has zeros.
        zeros: slot inputs of the zero adapter.
        table: whose slots are whose.
    """

    @classmethod
    def of(cls, adapters: Sequence[FloatAdapter], table: SlotTable) -> CallRecorder:
        """With these adapters' slot inputs."""
        return cls({adapter.name: balanced_inputs(adapter, table) for adapter in adapters}, slot_inputs(None, table), table)

    def __init__(
        self, slots: Mapping[str, Mapping[str, NDArray[np.float32]]], zeros: Mapping[str, NDArray[np.float32]], table: SlotTable
    ) -> None:
        self._slots, self._zeros = slots, zeros
        self._table = table
        self._source = ""
        self._recorded: dict[tuple[str, str, _Shapes], list[dict[str, NDArray[Any]]]] = {}

    def follow(self, feeds: Iterable[Feed]) -> Iterator[Feed]:
        """The same feeds; what is recorded belongs to the one that was taken last."""
        for feed in feeds:
            self._source = feed.source
            yield feed

    def record(self, component: str, inputs: Mapping[str, NDArray[Any]]) -> None:
        """Keep a copy of one call; a batch becomes calls of one."""
        for row in split_batch(inputs):
            call = {name: np.array(array) for name, array in row.items()}
            self._recorded.setdefault((component, self._source, tuple(array.shape for array in call.values())), []).append(call)

    def hook(self, component: str, inputs: Mapping[str, NDArray[Any]], _: object) -> None:
        """`record`, as calibration tells of a call and its output."""
        self.record(component, inputs)

    def calls(self, per_source: int = PER_SOURCE) -> list[ComponentCall]:
        """Of every component, source and picture size at most `per_source`, evenly spread, first and last among them."""
        calls = []
        for (component, source, _), recorded in self._recorded.items():
            every_slot = self._slots.get(source, self._zeros)
            slots = {name: every_slot[name] for name in self._table.of(component).input_shapes()}
            calls += [
                ComponentCall(component=component, source=source, inputs=inputs, slots=slots) for inputs in spread(recorded, per_source)
            ]
        return calls


def fitted_calls(
    calls: Sequence[ComponentCall], adapters: Sequence[FloatAdapter], table: SlotTable, profile: Profile
) -> tuple[ComponentCall, ...]:
    """The calls with normalised adapters in the units of the profile; others fit it as they are."""
    if not table.normalised:
        return tuple(calls)
    inputs = {adapter.name: rescaled_inputs(adapter, table, profile) for adapter in adapters}

    def fitted(call: ComponentCall) -> ComponentCall:
        of_source = inputs.get(call.source)
        return call if of_source is None else replace(call, slots={name: of_source[name] for name in call.slots})

    return tuple(map(fitted, calls))


def corrected_calls(
    calls: Sequence[ComponentCall], correction: Mapping[str, NDArray[Any]], table: SlotTable, profile: Profile
) -> tuple[ComponentCall, ...]:
    """The calls with the base's correction behind every adapter's channels, and for the base alone, as graphs read it.

    Args:
        calls: of `fitted_calls`, zero in the correction's channels.
        correction: tensors of its file; none changes nothing.
    """
    placed = dequantize_adapter(place_correction(correction, table), table, profile)
    sums: dict[str, dict[str, NDArray[Any]]] = {}

    def corrected(call: ComponentCall) -> ComponentCall:
        shared = sums.setdefault(call.source, {})
        for name in call.slots.keys() & placed.keys() - shared.keys():
            shared[name] = call.slots[name] + placed[name]
        return replace(call, slots={name: shared.get(name, array) for name, array in call.slots.items()})

    return tuple(map(corrected, calls)) if placed else tuple(calls)


def spread(items: Sequence[Item], most: int) -> list[Item]:
    """At most so many, evenly spread, the first and the last among them."""
    return [items[index] for index in np.unique(np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int))]
