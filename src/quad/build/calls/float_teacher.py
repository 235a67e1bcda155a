"""The float networks of a build as they were before anything was corrected: what is scored and aligned against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain, cycle, islice
from typing import final

import numpy as np
from numpy.typing import NDArray
from torch import nn

from quad.build.admission_data import layers_now
from quad.build.open_and_slot import SlottedModel
from quad.build.resume import stages as resumable
from quad.core.component_call import BASE_SOURCE
from quad.core.slots import UNET
from quad.model.base.modules import share_copy
from quad.quantize.observe.batched_calls import batched_forward
from quad.quantize.observe.calibrate import with_adapter
from quad.quantize.observe.probe import one_side_each
from quad.quantize.observe.probes import Probe, ProbeOptions, Probes, record_probes
from quad.quantize.processes.dealt import ARRAYS, dealt
from quad.quantize.profile.divergence import MIN_VALUES

MEASURED_CALLS = 4  # of each adapter, where nothing is trained
_AT_ONCE = 8  # pictures that the base is asked for, on all cores of one process


def share_networks(networks: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """The networks as they are now: what bias correction writes later does not reach these; weights are shared."""
    return {name: share_copy(network) for name, network in networks.items()}


def measured_on(probes: Sequence[Probe], most: int = MEASURED_CALLS) -> list[Probe]:
    """So many of an adapter's calls at most, from the first steps to the last, its runs in turns: calls of one run are alike."""
    runs: dict[int, list[int]] = {}
    for place, probe in enumerate(probes):
        runs.setdefault(probe.run, []).append(place)
    turns = zip(np.linspace(0.0, 1.0, most), cycle(runs.values()))
    return [probes[place] for place in sorted({places[round(share * (len(places) - 1))] for share, places in turns})]


@final
class FloatTeacher:
    """Float networks by component, and calls of every adapter along their runs.

    Args:
        model: whose networks they are, or were.
        networks: of `share_networks`; empty once they were let go.
        trains: adapters are trained against them in the end.
    """

    def __init__(self, model: SlottedModel, networks: Mapping[str, nn.Module], trains: bool) -> None:
        self._model, self._trains = model, trains
        self.networks = networks
        self.layers = layers_now(networks[UNET])

    @staticmethod
    def of(model: SlottedModel, trains: bool) -> FloatTeacher:
        """The networks as they are now."""
        return FloatTeacher(model, share_networks(model.networks), trains)

    @cached_property
    def probes(self) -> Probes:
        """Calls with their answers, to score on and to measure on: those that equalization recorded, else recorded when first asked for.

        Equalizing leaves the function as it was, so answers of before hold.

        Raises:
            InputError: an adapter has no sample.
        """
        model = self._model
        if recorded := model.mixed_precision.probes:
            return {source: calls for source, calls in recorded.items() if source != BASE_SOURCE}
        base, samples = model.measured, with_adapter(model.measured, model.samples)
        options = ProbeOptions(min_values=MIN_VALUES)
        return resumable.probes(
            model.cache, "probes", lambda: record_probes(base, self.networks, model.table, model.adapters, samples, options)
        )

    @cached_property
    def measured(self) -> Probes:
        """The calls that an adapter is measured on where nothing is trained, one side each; with answers, its own and the base's."""
        return resumable.probes(self._model.cache, "probes.measured", self._measure)

    def let_go(self) -> None:
        """Ask for all that is measured later, then hold no weight: rounding makes others, and a network has room in memory once.

        Training asks the float networks again, so with it they stay.
        """
        if self._trains:
            return
        if self._model.adapters:
            _ = self.probes, self.measured
        self.networks = {}

    def _measure(self) -> Probes:
        def base_answers(probes: Sequence[Probe]) -> dict[str, NDArray[np.float32]]:
            outputs = batched_forward(self.networks[UNET], [probe.tensors() for probe in probes], {})
            return {str(number): output.numpy() for number, output in enumerate(outputs)}

        measured = {source: one_side_each(measured_on(probes)) for source, probes in self.probes.items()}
        asked = [probe for probes in measured.values() for probe in probes]  # one base answers for all adapters
        pieces = [asked[first : first + _AT_ONCE] for first in range(0, len(asked), _AT_ONCE)]
        answers = chain.from_iterable([part[str(number)] for number in range(len(part))] for part in dealt(base_answers, pieces, ARRAYS))
        answered = map(lambda probe, answer: replace(probe, without=answer), asked, answers)
        return {source: list(islice(answered, len(probes))) for source, probes in measured.items()}
