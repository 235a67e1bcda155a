"""The graphs of one component for several picture sizes, over one file of weights.

A weight is the same whatever the size of the pictures: each is written once, by its bytes, and every graph points into that file. What
differs from size to size, shapes and tables of positions, stays in the graphs. The first size's graph keeps the names and shapes of all
that is within, by which an adapter to come is looked at; the others are run and never read, and go without.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import onnx_ir as ir

from quad.compile.artifact import MODEL_FILE, Artifact
from quad.core.manifest import Component, GraphFiles
from quad.core.picture_size import PictureSize
from quad.core.storage.files import writing_to

WEIGHTS_FILE = f"{MODEL_FILE}.data"
# Smaller constants stay in the graph: where they lie in a file takes as many bytes to say.
_SMALLEST = 256
# Engines map a large weight into memory, and a page is where that may begin.
_PAGE_BYTES, _WORD_BYTES, _LARGE_BYTES = 4096, 64, 2**20


def sized_file(size: PictureSize) -> str:
    """Name of the graph file for a further size."""
    return f"model.{size}.onnx"


@dataclass
class _Weights:
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


def write_sizes(folder: Path, first: Artifact, others: Mapping[PictureSize, Artifact]) -> Component:
    """Write the graphs of all sizes and their common weights into a new folder.

    Args:
        first: of the bundle's first size.
        others: of the further ones.

    Returns:
        The component; names are relative to the folder's parent.
    """
    folder.mkdir(parents=True)
    files = {MODEL_FILE: first, **{sized_file(size): artifact for size, artifact in others.items()}}
    with writing_to(folder / WEIGHTS_FILE), (folder / WEIGHTS_FILE).open("wb") as stream:
        weights = _Weights(stream)
        for name, artifact in files.items():
            model = artifact.graph()
            if artifact is not first:
                _strip(model.graph)
            _point(model.graph, weights, folder)
            ir.save(model, folder / name)
    data = (f"{folder.name}/{WEIGHTS_FILE}",)
    sizes = {str(size): GraphFiles(f"{folder.name}/{sized_file(size)}", data) for size in others}
    return Component(f"{folder.name}/{MODEL_FILE}", data, sizes=sizes)


def _strip(graph: ir.Graph) -> None:
    """Take out what no engine needs: names and shapes of what is within, and where the exporter had it from."""
    outside = {id(value) for value in (*graph.inputs, *graph.outputs)}
    weights = {id(value): value for value in graph.initializers.values()}
    graph.initializers.clear()
    count = 0
    for node in graph:
        node.name, node.doc_string = "", None
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


def _point(graph: ir.Graph, weights: _Weights, folder: Path) -> None:
    """Make the graph's weights places in the file of weights, which lies in the folder."""
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is None or tensor.nbytes < _SMALLEST:
            continue
        content, shape = tensor.tobytes(), ir.Shape(tensor.shape.numpy())
        value.const_value = ir.ExternalTensor(
            WEIGHTS_FILE, weights.place(content), len(content), tensor.dtype, shape=shape, name=str(value.name), base_dir=folder
        )
