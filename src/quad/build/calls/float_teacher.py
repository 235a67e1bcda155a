"""The float networks of a build as they were before anything was corrected: what is scored and aligned against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import nn

from quad.build.open_and_slot import SlottedModel
from quad.build.resume import stages as resumable
from quad.core.component_call import BASE_SOURCE
from quad.model.base.modules import share_copy
from quad.quantize.observe.calibrate import with_adapter
from quad.quantize.observe.probes import ProbeOptions, Probes, record_probes
from quad.quantize.profile.divergence import MIN_VALUES


def share_networks(networks: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """The networks as they are now: what bias correction writes later does not reach these; weights are shared."""
    return {name: share_copy(network) for name, network in networks.items()}


@dataclass(frozen=True)
class FloatTeacher:
    """Float networks by component, and calls of every adapter along their runs."""

    model: SlottedModel
    networks: Mapping[str, nn.Module]

    @staticmethod
    def of(model: SlottedModel) -> FloatTeacher:
        """The networks as they are now."""
        return FloatTeacher(model, share_networks(model.networks))

    @cached_property
    def probes(self) -> Probes:
        """Calls with their answers, to score on and to measure on: those that equalization recorded, else recorded when first asked for.

        Equalizing leaves the function as it was, so answers of before hold.

        Raises:
            InputError: an adapter has no sample.
        """
        model = self.model
        if recorded := model.mixed_precision.probes:
            return {source: calls for source, calls in recorded.items() if source != BASE_SOURCE}
        base, samples = model.measured, with_adapter(model.measured, model.samples)
        options = ProbeOptions(min_values=MIN_VALUES)
        return resumable.probes(
            model.cache, "probes", lambda: record_probes(base, self.networks, model.table, model.adapters, samples, options)
        )
