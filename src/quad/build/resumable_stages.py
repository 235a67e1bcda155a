"""The long stages of a build, each made once: statistics feed by feed, probes, aligned adapters, graphs."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from torch import nn

from quad.build.processes import is_main
from quad.build.resume import Kept
from quad.compile.artifact import Artifact, FileArtifact
from quad.core.component_call import ComponentCall
from quad.core.digests import file_digest
from quad.core.storage.files import writing_to
from quad.model.slots.network import SlottedNetwork
from quad.quantize.correct.smooth import ChannelMaxima, recording_channel_maxima
from quad.quantize.distill.distill import Alignment, Distilled
from quad.quantize.encodings.histogram import Histogram
from quad.quantize.observe.observers import Feed, SiteStatistics, Statistics, observe
from quad.quantize.observe.probes import Probe

_STATISTICS, _ARTIFACT, _OUTPUT = "statistics", "graph", "output"
Probes = Mapping[str, Sequence[Probe]]


def observed(kept: Kept, networks: Mapping[str, nn.Module], feeds: Iterable[Feed], sources: Sequence[str]) -> Statistics:
    """`observe`, which goes on behind the last feed that an earlier run has finished.

    Args:
        sources: names that feeds may have.
    """
    found = {source: piece for source in sources if (piece := kept.read(f"{_STATISTICS}.{source}")) is not None}
    statistics = _together(found)
    left = {source: int(value["feeds"]) for source, (value, _) in found.items()}
    latest = max((int(value["number"]) for value, _ in found.values()), default=0)

    def following() -> Iterator[Feed]:
        run: Counter[str] = Counter()
        for number, feed in enumerate(feeds, 1):
            run[feed.source] += 1
            if run[feed.source] > left.get(feed.source, 0):
                yield feed  # it is run before the next one is asked for
                piece = _taken(statistics, feed.source, run[feed.source], max(number, latest))
                kept.write(f"{_STATISTICS}.{feed.source}", *piece)

    return observe(networks, following(), statistics)


def _together(found: Mapping[str, tuple[Any, Mapping[str, NDArray[Any]]]]) -> Statistics:
    """Statistics of all sources as they were after the last feed that was finished.

    Sums in another order round to other numbers: sites and sources come back in the order in which that feed left them.
    """
    statistics = Statistics()
    if found:
        latest = max((value for value, _ in found.values()), key=lambda value: int(value["number"]))
        for component, names in latest["order"]:
            statistics.sites[component] = {name: {} for name in names}
        for source in sorted(found, key=latest["sources"].index):
            _put(statistics, source, *found[source])
    return statistics


def _taken(statistics: Statistics, source: str, feeds: int, number: int) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """One source's statistics after so many feeds of its own, the last of them feed `number` of all; and the order of all sites."""
    rows, counts, sums = [], [], []
    seen: dict[str, None] = {}
    for component, sites in statistics.sites.items():
        for name, by_source in sites.items():
            seen.update(dict.fromkeys(by_source))
            if source in by_source:
                one, h = by_source[source], by_source[source].histogram
                channels = np.zeros(0) if one.channel_sum is None else one.channel_sum
                rows.append([component, name, h.exponent, h.origin, h.low, h.high, h.total, one.per_channel, len(channels)])
                counts.append(h.counts)
                sums.append(channels)
    order = [[component, list(sites)] for component, sites in statistics.sites.items()]
    value = {"feeds": feeds, "number": number, "sites": rows, "order": order, "sources": list(seen)}
    return value, {"counts": np.stack(counts), "sums": np.concatenate(sums)}


def _put(statistics: Statistics, source: str, value: Any, arrays: Mapping[str, NDArray[Any]]) -> None:
    """What `_taken` took."""
    start = 0
    for row, counts in zip(value["sites"], arrays["counts"], strict=True):
        component, name, exponent, origin, low, high, total, per_channel, channels = row
        histogram, stop = Histogram.of(counts.copy(), exponent, origin, (low, high), total), start + channels
        statistics.sites[component][name][source] = SiteStatistics(histogram, arrays["sums"][start:stop], per_channel)
        start = stop


def probes(kept: Kept, name: str, make: Callable[[], Probes]) -> Probes:
    """What `record_probes` gives, or gave in an earlier run."""
    found = kept.read(name)
    if found is not None:
        return _probes(*found)
    made = make()
    _keep_probes(kept, name, made)
    return made


def heard_probes(kept: Kept, name: str, network: SlottedNetwork, make: Callable[[], Probes]) -> tuple[Probes, ChannelMaxima]:
    """`probes` along whose calls `smooth` has listened to this network."""
    channels, found = kept.read(f"{name}.channels"), kept.read(name)
    if channels is not None and found is not None:
        return _probes(*found), channels[1]
    with recording_channel_maxima(network) as heard:
        made = make()
    kept.write(f"{name}.channels", None, heard)
    _keep_probes(kept, name, made)
    return made, heard


def _keep_probes(kept: Kept, name: str, made: Probes) -> None:
    rows: dict[str, list[list[Any]]] = {}
    arrays: dict[str, NDArray[Any]] = {}
    for source, some in made.items():
        rows[source] = [[probe.task, probe.run, probe.sigma_t, sorted(probe.inputs)] for probe in some]
        for index, probe in enumerate(some):
            arrays |= {f"{source}/{index}/{key}": array for key, array in probe.inputs.items()}
            arrays |= {} if probe.expected is None else {f"{source}/{index}/{_OUTPUT}": probe.expected}
    kept.write(name, rows, arrays)


def _probes(value: Any, arrays: Mapping[str, NDArray[Any]]) -> Probes:
    def one(source: str, index: int, row: list[Any]) -> Probe:
        (task, run, sigma_t, keys), own = row, f"{source}/{index}"
        inputs, output = {key: arrays[f"{own}/{key}"] for key in keys}, arrays.get(f"{own}/{_OUTPUT}")
        return Probe(source=source, task=task, run=run, inputs=inputs, sigma_t=sigma_t, expected=output)

    return {source: [one(source, index, row) for index, row in enumerate(rows)] for source, rows in value.items()}


def aligned(kept: Kept, adapter: str, make: Callable[[], Distilled]) -> Distilled:
    """What `distill` gives, or gave in an earlier run."""
    found = kept.read(f"aligned.{adapter}")
    if found is not None:
        return Distilled(dict(found[1]), msgspec.convert(found[0], Alignment))
    made = make()
    kept.write(f"aligned.{adapter}", msgspec.to_builtins(made.alignment), made.integers)
    return made


def references(kept: Kept, make: Callable[[], tuple[ComponentCall, ...]]) -> tuple[ComponentCall, ...]:
    """What `float_references` gives, or gave in an earlier run."""
    found = kept.read("references")
    if found is not None:
        value, arrays = found
        return tuple(
            ComponentCall(
                component=component,
                source=source,
                inputs={key: arrays[f"{index}/in/{key}"] for key in keys},
                expected=arrays[f"{index}/out"],
            )
            for index, (component, source, keys) in enumerate(value)
        )
    made = make()
    kept_arrays: dict[str, NDArray[Any]] = {f"{index}/out": np.asarray(one.expected) for index, one in enumerate(made)}
    for index, one in enumerate(made):
        kept_arrays |= {f"{index}/in/{key}": array for key, array in one.inputs.items()}
    kept.write("references", [[one.component, one.source, sorted(one.inputs)] for one in made], kept_arrays)
    return made


def artifact(kept: Kept, component: str, make: Callable[[], Artifact]) -> Artifact:
    """One component's files, made by `make` or found whole; the graph itself leaves memory."""
    if kept.folder is None:
        return make()
    name, folder = f"{_ARTIFACT}.{component}", kept.folder / component
    found = kept.read(name)
    if found is not None and all(_is_whole(folder / file, sha256) for file, sha256 in found[0]["files"].items()):
        return FileArtifact(folder, found[0]["placement"], found[0]["agreement_db"])
    made = make()
    if is_main():
        shutil.rmtree(folder, ignore_errors=True)
        with writing_to(folder):
            made.write(folder)
        files = {path.name: file_digest(path) for path in sorted(folder.iterdir())}
        kept.write(name, {"files": files, "placement": dict(made.placement), "agreement_db": dict(made.agreement_db)})
    return FileArtifact(folder, dict(made.placement), dict(made.agreement_db))


def _is_whole(path: Path, sha256: str) -> bool:
    return path.is_file() and file_digest(path) == sha256
