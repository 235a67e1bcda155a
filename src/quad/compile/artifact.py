"""Artifacts: the files of one compiled graph, ready to go into the bundle."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import msgspec
import onnx_ir as ir

from quad.core.digests import digest
from quad.core.manifest import Component

MODEL_FILE = "model.onnx"
TFLITE_FILE = "model.tflite"
_INLINE_BYTES = 256  # of a tensor that is not worth a place in another file
EXTERNAL_DATA_BYTES = 32_000_000  # engines map a file of weights into memory; a protobuf they read, copy, and hold twice while loading


class Artifact(Protocol):
    """One component, ready to be written.

    A Protocol because targets share no class: an ONNX graph is written, a vendor's binary is copied.
    """

    @property
    def placement(self) -> dict[str, int]:
        """`nodes`, `on_target`, `on_cpu`, `partitions` of docs/formats.md."""
        ...

    @property
    def agreement_db(self) -> Mapping[str, float]:
        """SQNR of the compiled graph against the placed one on a CPU, by what it was fed with; empty where nothing is compiled."""
        ...

    @property
    def chips(self) -> Mapping[str, str]:
        """Chip -> what was done for it, in the words of `quad.core.chips`; empty where the target is one chip, or any machine."""
        ...

    @property
    def identity(self) -> str | msgspec.UnsetType:
        """See `Component.identity`."""
        ...

    def graph(self) -> ir.Model:
        """The graph that is written, to be changed by who asks."""
        ...

    def write(self, folder: Path) -> Component:
        """Write all files into a new folder; names in the answer are relative to its parent."""
        ...


@dataclass(frozen=True, kw_only=True)
class OnnxArtifact:
    """A graph that an engine reads as it is."""

    model: ir.Model
    placement: dict[str, int]
    agreement_db: Mapping[str, float] = field(default_factory=dict)
    chips: Mapping[str, str] = field(default_factory=dict)
    identity: msgspec.UnsetType = msgspec.UNSET

    def graph(self) -> ir.Model:
        """The graph itself: it cannot be written after that."""
        return self.model

    def write(self, folder: Path) -> Component:
        """`model.onnx`, with `model.onnx.data` beside it where the weights are too many for one protobuf."""
        folder.mkdir(parents=True)
        beside = save_graph(self.model, folder / MODEL_FILE)
        return Component(f"{folder.name}/{MODEL_FILE}", tuple(f"{folder.name}/{name}" for name in beside))


@dataclass(frozen=True, kw_only=True)
class FileArtifact:
    """Files that a compiler, or an earlier run, has written to `source`; `model.onnx` is the graph's, or `model.tflite`."""

    source: Path
    placement: dict[str, int]
    agreement_db: Mapping[str, float]
    chips: Mapping[str, str] = field(default_factory=dict)
    identity: str | msgspec.UnsetType = msgspec.UNSET

    def graph(self) -> ir.Model:
        """Read from where it lies: `onnx_ir` reads no weights from a file that has two names, as a copy by `write` may."""
        return ir.load(self.source / MODEL_FILE)

    def write(self, folder: Path) -> Component:
        """The same files under another name where the disk can, else copies."""
        folder.mkdir(parents=True)
        names = sorted(path.name for path in self.source.iterdir())
        for name in names:  # `copytree` would go on after a full disk, and hide it in a list of errors
            try:
                os.link(self.source / name, folder / name)
            except OSError:
                shutil.copyfile(self.source / name, folder / name)
        graph = TFLITE_FILE if TFLITE_FILE in names else MODEL_FILE
        beside = tuple(f"{folder.name}/{name}" for name in names if name != graph)
        return Component(f"{folder.name}/{graph}", beside, identity=self.identity)


def save_graph(model: ir.Model, path: Path) -> tuple[str, ...]:
    """Save a graph, and its weights beside it where they are too many for one protobuf.

    Returns:
        Names of the files beside it.
    """
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    if size <= EXTERNAL_DATA_BYTES:
        ir.save(model, path)
        return ()
    data = f"{path.name}.data"
    ir.save(model, path, external_data=data, size_threshold_bytes=max(_INLINE_BYTES, split_bytes(model.graph)))
    return (data,)


def split_bytes(graph: ir.Graph) -> int:
    """Bytes of the longest list of sizes that a Split reads; that of normalised slots has an entry for each slot.

    It stays in the graph's own file: engines infer shapes before they read another.
    """
    sizes = [node.inputs[1] for node in graph if node.op_type == "Split" and len(node.inputs) > 1]
    return max((size.const_value.nbytes for size in sizes if size is not None and size.const_value is not None), default=0)


def graph_digest(component: Component, sha256_of: Callable[[str], str]) -> str:
    """Identity of a graph: its compiler's where it has one, else the digest over its files' digests, which `sha256_of` gives by name."""
    return digest([sha256_of(name) for name in component.files]) if component.identity is msgspec.UNSET else component.identity
