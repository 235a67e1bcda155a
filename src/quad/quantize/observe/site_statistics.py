"""The statistics of every site with every source: what an observation counts, and adds up in the order of its feeds.

Memory is bounded by sites x sources x (one histogram of `BINS` counters + one sum per channel).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import final

import numpy as np
from numpy.typing import NDArray

from quad.core.errors import InputError, mismatch
from quad.core.tensor_names import LAYER_INPUTS, role_of
from quad.quantize.encodings.histogram import Density, Histogram, pool


@final
class SiteStatistics:
    """The statistics of one site with one source: the histogram of all values and the sum per channel.

    Args:
        histogram, channel_sum, per_channel: what was counted before, for one that goes on.
    """

    def __init__(
        self, histogram: Histogram | None = None, channel_sum: NDArray[np.float64] | None = None, per_channel: int = 0
    ) -> None:  # fmt: skip
        self.histogram = histogram or Histogram()
        self.channel_sum = channel_sum
        self.per_channel = per_channel

    def add(self, values: NDArray[np.float32], *, with_means: bool = True) -> None:
        """Count values `(B, C, H, W)` or `(..., C)`.

        Args:
            with_means: of the channels too.

        Raises:
            ValueError: a value is NaN or infinite.
        """
        self.histogram.add(values)
        if not with_means:
            return
        channel = 1 if values.ndim == 4 else values.ndim - 1
        sums = values.sum(axis=tuple(a for a in range(values.ndim) if a != channel), dtype=np.float64)
        self.channel_sum = sums if self.channel_sum is None else self.channel_sum + sums
        self.per_channel += values.size // values.shape[channel]

    def merge(self, other: SiteStatistics) -> None:
        """Count what another one has counted."""
        self.histogram.merge(other.histogram)
        sums = [part for part in (self.channel_sum, other.channel_sum) if part is not None]
        self.channel_sum = sum(sums[1:], sums[0]) if sums else None
        self.per_channel += other.per_channel

    def channel_mean(self) -> NDArray[np.float64]:
        """Mean of each channel, `(C,)`."""
        return np.zeros(0) if self.channel_sum is None else self.channel_sum / self.per_channel


@dataclass(frozen=True)
class Statistics:
    """Everything that was observed: component -> site name -> source -> statistics."""

    sites: dict[str, dict[str, dict[str, SiteStatistics]]] = field(default_factory=dict)

    def record(self, component: str, name: str, source: str, values: NDArray[np.float32]) -> None:
        """Add the values that one call brought to a site; channels have means at the inputs of layers, whose biases are corrected by them.

        Raises:
            InputError: a value is NaN or infinite.
        """
        try:
            of_site = self.sites.setdefault(component, {}).setdefault(name, {}).setdefault(source, SiteStatistics())
            of_site.add(values, with_means=role_of(name) in LAYER_INPUTS)
        except ValueError as error:
            where = f"calibration of {component} with {source!r}, {name}"
            raise InputError(mismatch(where, "finite values", "NaN or Inf", "check the weights of model and adapter")) from error

    def merge(self, other: Statistics) -> None:
        """Add what was observed elsewhere."""
        for component, sites in other.sites.items():
            for name, by_source in sites.items():
                for source, statistics in by_source.items():
                    self.sites.setdefault(component, {}).setdefault(name, {}).setdefault(source, SiteStatistics()).merge(statistics)

    def density(self, component: str, name: str, sources: Iterable[str] | None = None) -> Density:
        """The equal-weight mixture over `sources`, all of them by default."""
        by_source = self.sites[component][name]
        chosen = by_source if sources is None else [s for s in sources if s in by_source]
        return pool([by_source[s].histogram for s in chosen])

    def channel_mean(self, component: str, name: str) -> NDArray[np.float64]:
        """Mean of each channel, `(C,)`, every source with equal weight."""
        return np.asarray(np.mean([s.channel_mean() for s in self.sites[component][name].values()], axis=0))
