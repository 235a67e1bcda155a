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
from quad.quantize.observe.observers import Feed, Statistics, observe
from quad.quantize.observe.probes import Probes
from quad.quantize.observe.probes_file import probes_piece, read_probes_piece
from quad.quantize.observe.statistics_file import join_pieces, source_piece

_STATISTICS, _ARTIFACT = "statistics", "graph"


def observed(kept: Kept, networks: Mapping[str, nn.Module], feeds: Iterable[Feed], sources: Sequence[str]) -> Statistics:
    """`observe`, which goes on behind the last feed that an earlier run has finished.

    Args:
        sources: names that feeds may have.
    """
    found = {source: piece for source in sources if (piece := kept.read(f"{_STATISTICS}.{source}")) is not None}
    statistics = join_pieces(found)
    left = {source: int(value["feeds"]) for source, (value, _) in found.items()}
    latest = max((int(value["number"]) for value, _ in found.values()), default=0)

    def following() -> Iterator[Feed]:
        run: Counter[str] = Counter()
        for number, feed in enumerate(feeds, 1):
            run[feed.source] += 1
            if run[feed.source] > left.get(feed.source, 0):
                yield feed  # it is run before the next one is asked for
                piece = source_piece(statistics, feed.source, run[feed.source], max(number, latest))
                kept.write(f"{_STATISTICS}.{feed.source}", *piece)

    return observe(networks, following(), statistics)


def probes(kept: Kept, name: str, make: Callable[[], Probes]) -> Probes:
    """What `record_probes` gives, or gave in an earlier run."""
    found = kept.read(name)
    if found is not None:
        return read_probes_piece(*found)
    made = make()
    kept.write(name, *probes_piece(made))
    return made


def heard_probes(kept: Kept, name: str, network: SlottedNetwork, make: Callable[[], Probes]) -> tuple[Probes, ChannelMaxima]:
    """`probes` along whose calls `smooth` has listened to this network."""
    channels, found = kept.read(f"{name}.channels"), kept.read(name)
    if channels is not None and found is not None:
        return read_probes_piece(*found), channels[1]
    with recording_channel_maxima(network) as heard:
        made = make()
    kept.write(f"{name}.channels", None, heard)
    kept.write(name, *probes_piece(made))
    return made, heard


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
