"""The statistics of one source as a JSON value and two arrays, and back: an observation that stopped goes on behind its last feed.

| field of the value | holds |
|---|---|
| `feeds`, `number` | feeds of this source that are counted, and the number of the last of them among all feeds |
| `sites` | component, site, histogram (exponent, origin, low, high, total), values per channel, channels |
| `order`, `sources` | all sites by component, and all sources, in the order in which they came |

Arrays: `counts (sites, BINS)`, and `sums`, the channel sums of all sites one behind the other. Sums in another order round to other
numbers: hence the orders.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quad.quantize.encodings.histogram import Histogram
from quad.quantize.observe.site_statistics import SiteStatistics, Statistics
from quad.quantize.processes.dealt import Codec, Packed

Piece = Packed


def source_piece(statistics: Statistics, source: str, feeds: int, number: int) -> Piece:
    """One source's statistics.

    Args:
        feeds: of this source that are counted.
        number: of the last of them among all feeds.
    """
    rows, counts, sums = [], [], []
    sources: dict[str, None] = {}
    for component, sites in statistics.sites.items():
        for name, by_source in sites.items():
            sources.update(dict.fromkeys(by_source))
            if source in by_source:
                site = by_source[source]
                channel_sums = np.zeros(0) if site.channel_sum is None else site.channel_sum
                rows.append([component, name, *site.histogram.fields, site.per_channel, len(channel_sums)])
                counts.append(site.histogram.counts)
                sums.append(channel_sums)
    order = [[component, list(sites)] for component, sites in statistics.sites.items()]
    value = {"feeds": feeds, "number": number, "sites": rows, "order": order, "sources": list(sources)}
    return value, {"counts": np.stack(counts), "sums": np.concatenate(sums)} if counts else {"counts": np.zeros(0), "sums": np.zeros(0)}


def join_pieces(pieces: Mapping[str, Piece]) -> Statistics:
    """Statistics of all sources as they were after the last feed that was finished.

    Args:
        pieces: source -> its piece.
    """
    statistics = Statistics()
    if pieces:
        latest = max((value for value, _ in pieces.values()), key=lambda value: int(value["number"]))
        for component, names in latest["order"]:
            statistics.sites[component] = {name: {} for name in names}
        for source in sorted(pieces, key=latest["sources"].index):
            _add_source(statistics, source, *pieces[source])
    return statistics


def _add_source(statistics: Statistics, source: str, value: Any, arrays: Mapping[str, NDArray[Any]]) -> None:
    start = 0
    for row, counts in zip(value["sites"], arrays["counts"], strict=True):
        component, name, exponent, origin, low, high, total, per_channel, channels = row
        histogram, stop = Histogram.restore(counts.copy(), (exponent, origin, low, high, total)), start + channels
        statistics.sites[component][name][source] = SiteStatistics(histogram, arrays["sums"][start:stop], per_channel)
        start = stop


def _packed_source(counted: tuple[str, Statistics]) -> Piece:
    source, statistics = counted
    value, arrays = source_piece(statistics, source, feeds=1, number=1)
    return {**value, "source": source}, arrays


def _read_source(packed: Piece) -> tuple[str, Statistics]:
    source = str(packed[0]["source"])
    return source, join_pieces({source: packed}) if packed[0]["sites"] else Statistics()


SOURCE_CODEC = Codec(_packed_source, _read_source)  # of a source and what one feed of it has counted
