"""The long stages of a build, each made once: statistics feed by feed, probes, aligned adapters, graphs."""

from __future__ import annotations

import shutil
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from torch import nn

from quad.build.resume.cache import BuildCache
from quad.compile.artifact import Artifact, FileArtifact
from quad.core.component_call import ComponentCall
from quad.core.digests import file_digest
from quad.core.processes import is_main
from quad.core.storage.files import writing_to
from quad.lora.read import FloatAdapter
from quad.model.slots.network import SlottedNetwork
from quad.quantize.correct.smooth import ChannelMaxima, largest, recording_channel_maxima
from quad.quantize.distill.distill import Alignment, Distilled
from quad.quantize.observe.observers import Feed, Statistics, observe
from quad.quantize.observe.probes import Probes
from quad.quantize.observe.probes_file import probes_piece, read_probes_piece
from quad.quantize.observe.statistics_file import join_pieces, source_piece
from quad.quantize.processes.dealt import ARRAYS, Codec, dealt, from_each

_STATISTICS, _ARTIFACT = "statistics", "graph"


def observed(
    cache: BuildCache, networks: Mapping[str, nn.Module], feeds: Iterable[Feed], sources: Sequence[str], float_type: str
) -> Statistics:
    """`observe`, which goes on behind the last feed that an earlier run has finished.

    Args:
        sources: names that feeds may have.
        float_type: as of `observe`.
    """
    pieces = {source: piece for source in sources if (piece := cache.read(f"{_STATISTICS}.{source}")) is not None}
    statistics = join_pieces(pieces)
    left = {source: int(value["feeds"]) for source, (value, _) in pieces.items()}
    latest = max((int(value["number"]) for value, _ in pieces.values()), default=0)

    at_work: deque[tuple[int, int]] = deque()  # of the feeds that were asked for and are not counted yet: number of its source, and of all

    def following() -> Iterator[Feed]:
        run: Counter[str] = Counter()
        for number, feed in enumerate(feeds, 1):
            run[feed.source] += 1
            if run[feed.source] > left.get(feed.source, 0):
                at_work.append((run[feed.source], max(number, latest)))
                yield feed

    def write(feed: Feed) -> None:
        cache.write(f"{_STATISTICS}.{feed.source}", *source_piece(statistics, feed.source, *at_work.popleft()))

    return observe(networks, following(), statistics, write, float_type=float_type)


def probes(cache: BuildCache, name: str, make: Callable[[], Probes]) -> Probes:
    """The result of `record_probes`, of this run or an earlier one."""
    piece = cache.read(name)
    if piece is not None:
        return read_probes_piece(*piece)
    recorded = make()
    cache.write(name, *probes_piece(recorded))
    return recorded


def probes_and_channels(cache: BuildCache, name: str, network: SlottedNetwork, make: Callable[[], Probes]) -> tuple[Probes, ChannelMaxima]:
    """`probes`, and the channel maxima of this network along their calls."""
    channels, piece = cache.read(f"{name}.channels"), cache.read(name)
    if channels is not None and piece is not None:
        return read_probes_piece(*piece), channels[1]
    with recording_channel_maxima(network) as maxima:
        recorded = make()
    maxima = largest(from_each(dict(maxima), ARRAYS))
    cache.write(f"{name}.channels", None, maxima)
    cache.write(name, *probes_piece(recorded))
    return recorded, maxima


def aligned(
    cache: BuildCache,
    adapters: Sequence[FloatAdapter],
    make: Callable[[FloatAdapter], Distilled],
    following: Callable[[Sequence[FloatAdapter]], Iterable[FloatAdapter]],
    *,
    dealt_steps: bool,
) -> list[Distilled]:
    """The result of `distill` for every adapter, of this run or an earlier one.

    Args:
        following: gives the same adapters, and hears of each when its work begins.
        dealt_steps: processes share the steps of one adapter's training; else they share the adapters.
    """
    results = {adapter.name: _ALIGNED.decode(piece) for adapter in adapters if (piece := cache.read(_piece_of(adapter))) is not None}
    left = [adapter for adapter in adapters if adapter.name not in results]
    work = following(left)
    for adapter, distilled in zip(left, map(make, work) if dealt_steps else dealt(make, work, _ALIGNED), strict=True):
        cache.write(_piece_of(adapter), *_ALIGNED.encode(distilled))
        results[adapter.name] = distilled
    return [results[adapter.name] for adapter in adapters]


def _piece_of(adapter: FloatAdapter) -> str:
    return f"aligned.{adapter.name}"


_ALIGNED = Codec[Distilled](
    lambda distilled: (msgspec.to_builtins(distilled.alignment), distilled.integers),
    lambda packed: Distilled(dict(packed[1]), msgspec.convert(packed[0], Alignment)),
)


def references(cache: BuildCache, make: Callable[[], tuple[ComponentCall, ...]]) -> tuple[ComponentCall, ...]:
    """The result of `float_references`, of this run or an earlier one."""
    piece = cache.read("references")
    if piece is not None:
        value, arrays = piece
        return tuple(
            ComponentCall(
                component=component,
                source=source,
                inputs={key: arrays[f"{index}/in/{key}"] for key in keys},
                expected=arrays[f"{index}/out"],
            )
            for index, (component, source, keys) in enumerate(value)
        )
    calls = make()
    tensors: dict[str, NDArray[Any]] = {f"{index}/out": np.asarray(call.expected) for index, call in enumerate(calls)}
    for index, call in enumerate(calls):
        tensors |= {f"{index}/in/{key}": array for key, array in call.inputs.items()}
    cache.write("references", [[call.component, call.source, sorted(call.inputs)] for call in calls], tensors)
    return calls


def compiled(cache: BuildCache, component: str, make: Callable[[], Artifact]) -> Artifact:
    """One component's files, made by `make` or read whole; the graph itself leaves memory."""
    if cache.folder is None:
        return make()
    name, folder = f"{_ARTIFACT}.{component}", cache.folder / component
    piece = cache.read(name)
    if piece is not None and all(_is_whole(folder / file, sha256) for file, sha256 in piece[0]["files"].items()):
        return FileArtifact(source=folder, **piece[0]["artifact"])
    artifact = make()
    fields: dict[str, Any] = {"placement": dict(artifact.placement), "agreement_db": dict(artifact.agreement_db)}
    if artifact.chips:
        fields["chips"] = dict(artifact.chips)
    if artifact.identity is not msgspec.UNSET:
        fields["identity"] = artifact.identity
    if is_main():
        shutil.rmtree(folder, ignore_errors=True)
        with writing_to(folder):
            artifact.write(folder)
        files = {path.name: file_digest(path) for path in sorted(folder.iterdir())}
        cache.write(name, {"files": files, "artifact": fields})
    return FileArtifact(source=folder, **fields)


def _is_whole(path: Path, sha256: str) -> bool:
    return path.is_file() and file_digest(path) == sha256
