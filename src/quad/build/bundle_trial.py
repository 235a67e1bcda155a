"""The engine and the pipelines that try a bundle before it gets its name: for smoke run, golden outputs and conformance vectors alike.

Each graph is loaded once, asked everything once, and run by as many cores as there are.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from quad.build.write_bundle import BundleParts
from quad.core.picture_size import component_of
from quad.core.slots import UNET
from quad.core.storage.reading import files_below
from quad.quantize.observe.side_by_side import lanes
from quad.runtime.bundle import open_bundle
from quad.runtime.engines.engine import open_engine
from quad.runtime.engines.graph import BALANCED, KEEP_ALL, open_graphs
from quad.runtime.engines.memo import MemoEngine
from quad.runtime.fixed_threads import ENGINE_THREADS
from quad.runtime.pipeline import QuadPipeline

# Pipelines that record side by side. Where they cannot share their graphs, and where groups of adapters have a U-Net each, no more than one
# with all graphs in memory, unless a U-Net's files have no more bytes: at 860 million, Stable Diffusion 1.5's, two took a build's peak.
_PIPELINES, _SMALL_BYTES = 2, 300_000_000
_NO_SPARE_ADAPTERS = 0  # bytes: one at a time, for each is asked once


class BundleTrial:
    """The engine and the pipelines of one bundle."""

    def __init__(self, parts: BundleParts) -> None:
        """Nothing is opened yet."""
        self._parts = parts
        self._engine: MemoEngine | None = None
        self._shared = False

    def engine(self, graphs: Mapping[str, Path]) -> MemoEngine:
        """The best engine for the bundle.

        Args:
            graphs: files by name of the graph.

        Raises:
            BackendError: it is not installed.
        """
        engine = open_engine(self._parts.engines[0], (), self._parts.precision)
        self._shared = engine.name == "ort" and (self._parts.profile.group_count == 1 or _is_small(graphs[UNET].parent))
        kept = [file for name, file in graphs.items() if name == component_of(name)] if self._shared else []
        self._engine = MemoEngine(engine, kept)
        return self._engine

    def pipelines(self, root: Path) -> list[QuadPipeline]:
        """One pipeline over a whole bundle, or several that may run at the same time.

        Raises:
            BackendError: a graph cannot be loaded.
        """
        assert self._engine is not None, "graphs are tried before pictures are made"
        engine = self._engine
        # Where a chip is required each is an emulator, and makes no picture.
        several = self._shared or (not self._parts.requires and _is_small(root / UNET))
        bundle, memory = open_bundle(root, verify=False).without_weights(), KEEP_ALL if several else BALANCED
        count = min(lanes(), len(self._parts.tasks), _PIPELINES) if several else 1
        return [
            QuadPipeline(
                bundle, open_graphs(bundle, engine, ENGINE_THREADS, memory), engine=engine.name, memory=memory,
                adapter_budget_bytes=_NO_SPARE_ADAPTERS,
            )
            for _ in range(max(count, 1))
        ]  # fmt: skip

    def close(self) -> None:
        """Let go of the engine: its graphs leave memory with the pipelines, and their files can be renamed on any system."""
        self._engine = None


def _is_small(folder: Path) -> bool:
    return sum(path.stat().st_size for path in files_below(folder)) <= _SMALL_BYTES
