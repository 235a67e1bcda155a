"""Runs that are recorded: of each one call of each network, the runs taking turns from the first of their calls to the last.

So a few calls, one of each adapter, stand for all timesteps and for both sides of guidance.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from torch import nn

from quad.core.component_call import BASE_SOURCE, ComponentCall, split_batch
from quad.core.slots import UNET, SlotTable
from quad.lora.fit.integers import BalancedSlots
from quad.lora.read import FloatAdapter
from quad.model.base.open import Base
from quad.quantize.observe.calibrate import CalibrationOptions, CalibrationSample, calibration_feeds, plan_samples
from quad.quantize.observe.observers import Feed

PICTURES = 4  # that the encoder sees, those that tasks read among them
_Arrays = Mapping[str, NDArray[Any]]


class _FarEnoughError(Exception):
    """The call that is wanted of a run was made; caught where the run began."""


@final
class RecordedRuns:
    """A run of each of some samples, with what is recorded of it; sample k draws its noise from `seed + k`.

    Args:
        networks: of `component_networks`.
        adapters: all that samples name, and others.
    """

    def __init__(
        self,
        *,
        base: Base,
        networks: Mapping[str, nn.Module],
        table: SlotTable,
        adapters: Sequence[FloatAdapter],
        samples: Sequence[CalibrationSample],
        seed: int,
    ) -> None:
        self._base, self._networks, self._table = base, networks, table
        used = {sample.adapter or base.tasks[sample.task].adapter for sample in samples}
        self._adapters = {adapter.name: adapter for adapter in adapters if adapter.name in used}
        self._plan, self._seed = plan_samples(base, samples, list(self._adapters.values())), seed
        self._recorded: list[dict[str, list[_Arrays]]] = [{} for _ in samples]
        self._cut = set[int]()
        from_text = [number for number, (_, spec, _) in enumerate(self._plan) if not spec.reads_picture]
        self._decoded = from_text[: max(1, PICTURES + len(from_text) - len(self._plan))]

    def feeds(self, *, whole: bool = True) -> Iterator[Feed]:
        """The runs, which may be made side by side: to their latents, and to pictures as far as the autoencoder's encoder needs them.

        Args:
            whole: all of them; else each ends at the call that is wanted of it, but for the first that makes a picture.
        """
        for number, (sample, spec, name) in enumerate(self._plan):
            most = None if whole or self._decoded[:1] == [number] else int(self._share(number) * spec.sampler.steps) + 1
            hook, decodes = _hook(self._recorded[number], most), number in self._decoded
            options = CalibrationOptions(seed=self._seed + number, call_hook=hook, decodes=decodes)
            adapters = [] if name is None else [self._adapters[name]]
            (feed,) = calibration_feeds(self._base, self._networks, self._table, adapters, [sample], options)
            if most is not None:
                self._cut.add(number)
                feed = replace(feed, run=_ending(feed))
            yield feed

    def calls(self, component: str) -> Iterator[ComponentCall]:
        """Of each run that has called the component one row of one call, with the slots of its adapter."""
        names, slots = self._table.of(component).input_shapes(), BalancedSlots(list(self._adapters.values()), self._table)
        for number, (_, _, name) in enumerate(self._plan):
            if recorded := self._recorded[number].get(component):
                is_cut = component == UNET and number in self._cut  # behind the call that is wanted
                rows = split_batch(recorded[-1 if is_cut else int(self._share(number) * len(recorded))])
                own = slots[name] if name is not None else {}
                mine = {slot: own[slot] for slot in names if slot in own}
                used = mine if any(values.size for values in mine.values()) else {}
                yield ComponentCall(component=component, source=name or BASE_SOURCE, inputs=rows[number % len(rows)], slots=used)

    def _share(self, number: int) -> float:
        """The part of a run that lies before its call."""
        return (number + 0.5) / len(self._plan)


def _hook(recorded: dict[str, list[_Arrays]], most: int | None) -> Any:
    """Keeps a copy of what each call was given, and ends the run behind so many of the U-Net."""

    def record(component: str, inputs: _Arrays, _: object) -> None:
        calls = recorded.setdefault(component, [])
        calls.append({name: np.array(array) for name, array in inputs.items()})
        if component == UNET and len(calls) == most:
            raise _FarEnoughError

    return record


def _ending(feed: Feed) -> Any:
    def run() -> None:
        with suppress(_FarEnoughError):
            feed.run()

    return run


def one_of_each(base: Base, samples: Iterable[CalibrationSample]) -> list[CalibrationSample]:
    """The first sample of each adapter, and of the base."""
    first: dict[str | None, CalibrationSample] = {}
    for sample in samples:
        first.setdefault(sample.adapter or base.tasks[sample.task].adapter, sample)
    return list(first.values())
