"""Streaming statistics of every site of every network: one pass, no activation is kept.

Memory is bounded by sites x sources x (one histogram of `BINS` counters + one sum per channel).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from quad.core.errors import InputError, mismatch
from quad.model.slots.sites import collect_sites
from quad.quantize.encodings.histogram import Density, Histogram, pool
from quad.quantize.observe.side_by_side import in_order

_AT_WORK: ContextVar[tuple[str, Statistics]] = ContextVar("quad_at_work")  # source and statistics of the feed that runs in this thread


@dataclass(frozen=True)
class Feed:
    """One piece of work that drives the observed networks with real inputs.

    Args:
        source: whose ranges these are: an adapter's name, or any name where there are no adapters.
        run: calls the networks; what it returns is not used. It is called once, when its turn comes.
    """

    source: str
    run: Callable[[], object]


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

    def add(self, values: NDArray[np.float32]) -> None:
        """Count values `(B, C, H, W)` or `(..., C)`.

        Raises:
            ValueError: a value is NaN or infinite.
        """
        self.histogram.add(values)
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
        """Add the values that one call brought to a site.

        Raises:
            InputError: a value is NaN or infinite.
        """
        try:
            self.sites.setdefault(component, {}).setdefault(name, {}).setdefault(source, SiteStatistics()).add(values)
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


@contextmanager
def transforming(network: nn.Module, transform_of: Callable[[str], Callable[[Tensor], Tensor] | None]) -> Iterator[None]:
    """Give each Site the transform of its name while the block runs, then put back what was there."""
    sites = list(collect_sites(network).values())
    before = [site.transform for site in sites]
    try:
        for site in sites:
            site.transform = transform_of(site.name)
        yield
    finally:
        for site, transform in zip(sites, before, strict=True):
            site.transform = transform


def observe(
    networks: Mapping[str, nn.Module],
    feeds: Iterable[Feed],
    before: Statistics | None = None,
    done: Callable[[Feed], None] = lambda feed: None,
    *,
    together: bool = True,
) -> Statistics:
    """Run every feed once and gather the statistics of all sites that it passes.

    Each feed is counted by itself and added in its order, so it does not matter how many run at once.

    Args:
        networks: component name -> float network with Sites.
        feeds: the work; each is run without gradients.
        before: what was observed so far; it is added to.
        done: called with each feed in order, once it is counted.
        together: feeds may run side by side; else each has been run when the next one is asked for.

    Raises:
        InputError: there is no feed, the networks have no sites that were reached, or a value is NaN or infinite.
    """
    statistics, feeds_run = before or Statistics(), 0
    with ExitStack() as stack:
        for component, network in networks.items():
            stack.enter_context(transforming(network, partial(_recorder, component)))
        for feed, counted in in_order(_counted, feeds) if together else map(_counted, feeds):
            statistics.merge(counted)
            feeds_run += 1
            done(feed)
    if not statistics.sites:
        what_ran = "none" if not feeds_run else f"{feeds_run} that reached no site"
        raise InputError(mismatch("calibration", "at least one sample", what_ran, "give calibration samples for the tasks of this build"))
    return statistics


def _counted(feed: Feed) -> tuple[Feed, Statistics]:
    """A feed and the statistics of its run; gradients are switched by thread."""
    statistics = Statistics()
    token = _AT_WORK.set((feed.source, statistics))
    try:
        with torch.no_grad():
            feed.run()
    finally:
        _AT_WORK.reset(token)
    return feed, statistics


def _recorder(component: str, name: str) -> Callable[[Tensor], Tensor]:
    def record(tensor: Tensor) -> Tensor:
        source, statistics = _AT_WORK.get()
        statistics.record(component, name, source, tensor.detach().float().cpu().numpy())
        return tensor

    return record
