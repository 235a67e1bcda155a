"""The files of a merged bundle: graphs anew, all else as it lies in the bundle with slots."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import onnx_ir as ir

from quad.compile.artifact import OnnxArtifact
from quad.compile.shared_weights import FIRST, write_variants
from quad.core.digests import file_digest
from quad.core.manifest import EMBEDDINGS_FILE, PROBES_FILE, TOKENIZER_FILE, Component, FileEntry
from quad.core.storage.files import writing_to
from quad.core.storage.reading import files_below
from quad.export.bake.graph import MergedWeight
from quad.export.bundle_graph import graph_sizes, read_graph
from quad.runtime.bundle import Bundle

_KEPT = (TOKENIZER_FILE, PROBES_FILE, EMBEDDINGS_FILE)
Merge = Callable[[ir.Model], dict[str, MergedWeight]]


def write_graphs(bundle: Bundle, component: str, group: int, merge: Merge, stage: Path) -> tuple[Component, dict[str, MergedWeight]]:
    """The graphs of a component for all sizes and one group of adapters, merged.

    Args:
        group: counted from 0.

    Returns:
        The component, and the weights of its first graph.

    Raises:
        VerificationError: a graph is no graph.
    """
    models = {size: read_graph(bundle, component, size, group) for size in graph_sizes(bundle, component)}
    weights, *_ = [merge(model) for model in models.values()]
    artifacts = {(size, 0): OnnxArtifact(model=model, placement={}) for size, model in models.items()}
    folder = stage / component
    return write_variants(folder, artifacts) if len(artifacts) > 1 else artifacts[FIRST].write(folder), weights


def copy_rest(bundle: Bundle, components: Mapping[str, Component], stage: Path) -> dict[str, Component]:
    """Copy the components that stay, and what goes with a pipeline; adapters, and what is for adapters to come, stay behind.

    Args:
        components: that were written.

    Returns:
        All components.
    """
    rest = {name: part for name, part in bundle.manifest.components.items() if name not in components}
    folders = tuple(f"{name}/" for name in rest)
    names = [name for name in bundle.manifest.files if name in _KEPT or name.startswith(folders)] if folders else list(_KEPT)
    for name in names:
        if name not in bundle.manifest.files:
            continue
        target = stage / name
        with writing_to(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.path(name), target)
    return {name: components.get(name, part) for name, part in bundle.manifest.components.items()}


def entries(stage: Path) -> dict[str, FileEntry]:
    """Digest and size of every file there."""
    return {path.relative_to(stage).as_posix(): FileEntry(file_digest(path), path.stat().st_size) for path in files_below(stage)}
