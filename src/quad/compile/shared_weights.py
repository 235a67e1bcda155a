"""The graphs of one component for several picture sizes and groups of adapters, over one file of weights where they are ONNX.

A weight is the same whatever the size of the pictures, and whichever activation ranges hold: each is written once, by its bytes, and
every graph points into that file. What differs, shapes, tables of positions, scales of activations, stays in the graphs. The first graph
keeps the names and shapes of all that is within. The others are run and never read, and go without; but for the names of what is
quantized in a group's first size, by which an adapter to come is looked at.

A vendor's binaries hold their weights themselves: each further size has a folder of its own (docs/adr/0029-sizes.md).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import msgspec
import onnx_ir as ir

from quad.compile.artifact import MODEL_FILE, Artifact, split_bytes
from quad.core.digests import digest
from quad.core.manifest import Component, GraphFiles, SizedGraphs
from quad.core.picture_size import PictureSize, graph_name
from quad.core.storage.files import writing_to

WEIGHTS_FILE = f"{MODEL_FILE}.data"
# Smaller constants stay in the graph: where they lie in a file takes as many bytes to say.
_SMALLEST = 256
# Engines map a large weight into memory, and a page is where that may begin.
_PAGE_BYTES, _WORD_BYTES, _LARGE_BYTES = 4096, 64, 2**20


def graph_file(size: PictureSize | None, group: int = 0) -> str:
    """Name of the graph file for a further size, None for the first, and a group of adapters, counted from 0."""
    return f"{graph_name('model', size, group)}.onnx"


@dataclass
class SharedWeights:
    """A file of weights as it is written; equal ones lie in it once."""

    stream: BinaryIO
    length: int = 0
    places: dict[bytes, int] = field(default_factory=dict)

    def place(self, content: bytes) -> int:
        """Where these bytes begin in the file, written now or before."""
        key = hashlib.sha256(content).digest()
        if key not in self.places:
            align = _PAGE_BYTES if len(content) >= _LARGE_BYTES else _WORD_BYTES
            begin = -(-self.length // align) * align
            self.stream.write(b"\0" * (begin - self.length) + content)
            self.places[key], self.length = begin, begin + len(content)
        return self.places[key]


# Size, None for the first, and group of adapters, counted from 0.
Variant = tuple[PictureSize | None, int]
FIRST: Variant = (None, 0)


def write_variants(folder: Path, artifacts: Mapping[Variant, Artifact]) -> Component:
    """Write the graphs of all sizes and groups and their common weights into a new folder.

    Args:
        artifacts: each group of adapters has all sizes; `FIRST` is among them.

    Returns:
        The component; names are relative to the folder's parent.
    """
    if artifacts[FIRST].identity is not msgspec.UNSET:
        return _write_apart(folder, artifacts)
    folder.mkdir(parents=True)
    with writing_to(folder / WEIGHTS_FILE), (folder / WEIGHTS_FILE).open("wb") as stream:
        weights = SharedWeights(stream)
        for variant, artifact in artifacts.items():
            model = artifact.graph()
            if variant != FIRST:
                _strip(model.graph, keep=("QuantizeLinear",) if variant[0] is None else ())
            point_into(model.graph, weights, folder / WEIGHTS_FILE)
            ir.save(model, folder / graph_file(*variant))
    return _component(folder.name, tuple(artifacts))


def _component(name: str, variants: Sequence[Variant]) -> Component:
    """The files of all variants."""
    data = (f"{name}/{WEIGHTS_FILE}",)

    def graphs(group: int) -> SizedGraphs:
        further = [size for size, number in variants if size is not None and number == group]
        sizes = {f"{size}": GraphFiles(f"{name}/{graph_file(size, group)}", data) for size in further}
        return SizedGraphs(f"{name}/{graph_file(None, group)}", data, sizes=sizes or msgspec.UNSET)

    first, *others = (graphs(group) for group in sorted({group for _, group in variants}))
    return Component(first.file, data, sizes=first.sizes, groups=tuple(others) or msgspec.UNSET)


def _write_apart(folder: Path, artifacts: Mapping[Variant, Artifact]) -> Component:
    """Write each size and group with its own weights, all but the first in a folder of its own within."""
    component = artifacts[FIRST].write(folder)
    written: dict[Variant, GraphFiles] = {FIRST: component}
    for variant, artifact in artifacts.items():
        if variant != FIRST:
            files = artifact.write(folder / graph_name("", *variant).removeprefix("."))
            written[variant] = GraphFiles(f"{folder.name}/{files.file}", tuple(f"{folder.name}/{name}" for name in files.data_files))

    def sizes(group: int) -> dict[str, GraphFiles] | msgspec.UnsetType:
        return {f"{size}": files for (size, number), files in written.items() if size is not None and number == group} or msgspec.UNSET

    further = sorted({group for _, group in written} - {0})
    groups = tuple(SizedGraphs(written[None, group].file, written[None, group].data_files, sizes=sizes(group)) for group in further)
    identity = digest([artifact.identity for artifact in artifacts.values()])
    return msgspec.structs.replace(component, identity=identity, sizes=sizes(0), groups=groups or msgspec.UNSET)


def _strip(graph: ir.Graph, keep: Sequence[str] = ()) -> None:
    """Take out what no engine needs: names and shapes of what is within, and where the exporter had it from.

    Args:
        keep: kinds of nodes that keep their names.
    """
    outside = {id(value) for value in (*graph.inputs, *graph.outputs)}
    weights = {id(value): value for value in graph.initializers.values()}
    graph.initializers.clear()
    count = 0
    for node in graph:
        node.name, node.doc_string = node.name if node.op_type in keep else "", None
        node.metadata_props.clear()
        for value in (*node.inputs, *node.outputs):
            if value is None or id(value) in outside:
                continue
            outside.add(id(value))
            value.name, count = f"{count:x}", count + 1
            value.metadata_props.clear()
            if id(value) not in weights:
                value.shape = value.type = None
    for value in weights.values():
        graph.register_initializer(value)


def point_into(graph: ir.Graph, weights: SharedWeights, file: Path) -> None:
    """Make the graph's weights places in the file of weights; those that are such places already stay."""
    smallest = max(_SMALLEST, split_bytes(graph) + 1)
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is None or tensor.nbytes < smallest or _lies_in(tensor, file):
            continue
        content, shape = tensor.tobytes(), ir.Shape(tensor.shape.numpy())
        value.const_value = ir.ExternalTensor(
            file.name, weights.place(content), len(content), tensor.dtype, shape=shape, name=str(value.name), base_dir=file.parent
        )


def _lies_in(tensor: ir.TensorProtocol, file: Path) -> bool:
    return isinstance(tensor, ir.ExternalTensor) and Path(tensor.path) == file
