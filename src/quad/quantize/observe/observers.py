"""Streaming statistics of every site of every network: one pass, no activation is kept, whatever process runs a feed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from quad.core.errors import InputError, mismatch
from quad.core.float_type import F32
from quad.core.processes import process_count
from quad.model.slots.sites import collect_sites
from quad.quantize.observe.short_floats import computing_in, weights_in
from quad.quantize.observe.side_by_side import in_order, lanes
from quad.quantize.observe.site_statistics import SiteStatistics as SiteStatistics
from quad.quantize.observe.site_statistics import Statistics as Statistics
from quad.quantize.observe.statistics_file import SOURCE_CODEC
from quad.quantize.processes.dealt import dealt

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
    float_type: str = F32,
) -> Statistics:
    """Run every feed once and gather the statistics of all sites that it passes.

    Each feed is counted by itself and added in its order, so it does not matter how many run at once.

    Args:
        networks: component name -> float network with Sites.
        feeds: the work; each is run without gradients.
        before: what was observed so far; it is added to.
        done: called with each feed in order, once it is counted.
        together: feeds may run side by side; else each has been run when the next one is asked for.
        float_type: `f32` or `bf16`, of the networks' products.

    Raises:
        InputError: there is no feed, the networks have no sites that were reached, or a value is NaN or infinite.
    """
    statistics, feeds_run, count = before or Statistics(), 0, partial(_counted, float_type)
    with ExitStack() as stack:
        stack.enter_context(weights_in(float_type, networks.values()))
        for component, network in networks.items():
            stack.enter_context(transforming(network, partial(_recorder, component)))
        for feed, counted in _run(count, feeds) if together else map(count, feeds):
            statistics.merge(counted)
            feeds_run += 1
            done(feed)
    if not statistics.sites:
        what_ran = "none" if not feeds_run else f"{feeds_run} that reached no site"
        raise InputError(mismatch("calibration", "at least one sample", what_ran, "give calibration samples for the tasks of this build"))
    return statistics


def _run(count: Callable[[Feed], tuple[Feed, Statistics]], feeds: Iterable[Feed]) -> Iterator[tuple[Feed, Statistics]]:
    """Every feed and its statistics, in order; of several processes each runs some of them whole."""
    if process_count() == 1:
        yield from in_order(count, feeds)
        return
    asked_for: deque[Feed] = deque()

    def following() -> Iterator[Feed]:
        for feed in feeds:
            asked_for.append(feed)
            yield feed

    def counted(feed: Feed) -> tuple[str, Statistics]:
        return feed.source, count(feed)[1]

    for _, statistics in dealt(counted, following(), SOURCE_CODEC, lanes()):
        yield asked_for.popleft(), statistics


def _counted(float_type: str, feed: Feed) -> tuple[Feed, Statistics]:
    """A feed and the statistics of its run; gradients and types are switched by thread."""
    statistics = Statistics()
    token = _AT_WORK.set((feed.source, statistics))
    try:
        with torch.no_grad(), computing_in(float_type):
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
