"""A bundle for ONNX Runtime's own `LoraAdapter`: graphs whose slots have zeros by default, and an `.onnx_adapter` file an adapter.

    OUT/COMPONENT.onnx, COMPONENT.onnx.data       the graph; a run without an adapter is the base, bit for bit
    OUT/NAME/COMPONENT.onnx_adapter               A and B of every slot that the adapter has, at the slots' ranks
    OUT/export.json                               session options that compute the graph as it is written, and the files by name

An active adapter's tensors become feeds of a run. The library asks for every input that has no default before it looks at adapters, takes
no tensor without axes, and passes adapters over where inputs are bound (`run_with_iobinding`). So the slots get defaults, which all lie at
one place of the file of weights: zeros are zeros. A tensor begins at a multiple of 4 bytes, enough for 8, 16 and 32 bits.
Seen with onnxruntime 1.31.1. The format has no room for a scale or a digest: scales are in the graph, digests in `export.json`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from quad.compile.shared_weights import SharedWeights, point_into
from quad.core.digests import canonical_json, file_digest
from quad.core.errors import BackendError, lack_of, mismatch
from quad.core.picture_size import graph_name
from quad.core.progress import Progress, silent
from quad.core.slots import SlotTable
from quad.core.storage.directories import new_directory, require_replaceable
from quad.core.storage.files import write_bytes, writing_to
from quad.core.storage.reading import files_below
from quad.export.bundle_graph import graph_sizes, read_graph, require_onnx, require_slots
from quad.runtime.adapters.store import AdapterStore
from quad.runtime.bundle import Bundle, open_bundle

EXPORT_FILE, SUFFIX = "export.json", ".onnx_adapter"
FORMAT = "onnx-adapter"
_AS_WRITTEN = {"session.disable_quant_qdq": "1"}  # Q/DQ of activations computed as they stand; see `quad.runtime.engines.ort`
_VERSION = 1


def export_ort_adapters(bundle: Path, output: Path, progress: Progress = silent) -> dict[str, Any]:
    """Write graphs and adapters; the bundle is only read.

    Returns:
        The content of `export.json`.

    Raises:
        CompatibilityError: the bundle has no slots. UnsupportedError: its graphs are a chip's binaries.
        InputError: the place holds something else. BackendError: the disk is full.
    """
    require_replaceable(output, EXPORT_FILE)
    opened = open_bundle(bundle)
    require_onnx(opened, "take a bundle for cpu")
    require_slots(opened)
    store = AdapterStore(opened)
    with new_directory(output, EXPORT_FILE) as stage:
        graphs: dict[str, str] = {}
        for component in opened.slots.components:
            progress(f"graph {component}", 0.0)
            graphs |= _write_graphs(opened, component, stage)
        adapters: dict[str, dict[str, str]] = {}
        for index, name in enumerate(store.names):
            progress(f"adapter {name}", (index + 1) / (len(store.names) + 1))
            adapters[name] = _write_adapter(opened, store, name, stage)
        described = {
            "format": FORMAT,
            "bundle": opened.manifest.sha256,
            "graphs": graphs,
            "adapters": adapters,
            "groups": {name: store.manifest(name).group_number + 1 for name in adapters},
            "session_config": {} if opened.manifest.precision == "float" else _AS_WRITTEN,
            "files": {path.relative_to(stage).as_posix(): file_digest(path) for path in files_below(stage)},
        }
        write_bytes(stage / EXPORT_FILE, canonical_json(described))
    return described


def _write_graphs(bundle: Bundle, component: str, stage: Path) -> dict[str, str]:
    """The graphs of a component for all sizes and groups of adapters over one file of weights: name of the graph -> file."""
    groups = range(1 + len(bundle.manifest.components[component].groups or ()))
    slots, data, files = bundle.slots.of(component), stage / f"{component}.onnx.data", {}
    with writing_to(data), data.open("wb") as stream:
        weights = SharedWeights(stream)
        for size, group in product(graph_sizes(bundle, component), groups):
            model, name = read_graph(bundle, component, size, group), graph_name(component, size, group)
            _default_to_zeros(model.graph, slots, weights, data)
            point_into(model.graph, weights, data)
            files[name] = f"{name}.onnx"
            ir.save(model, stage / files[name])
    return files


def _default_to_zeros(graph: ir.Graph, slots: SlotTable, weights: SharedWeights, data: Path) -> None:
    """Give each slot input a default at the beginning of one run of zeros."""
    shapes = slots.input_shapes()
    inputs = {str(value.name): value for value in graph.inputs if value.name in shapes}
    types = {name: ir.DataType.FLOAT if value.dtype is None else value.dtype for name, value in inputs.items()}
    lengths = {name: math.prod(shapes[name]) * types[name].numpy().itemsize for name in inputs}
    place = weights.place(bytes(max(lengths.values())))
    for name, value in inputs.items():
        shape = ir.Shape(shapes[name])
        value.const_value = ir.ExternalTensor(data.name, place, lengths[name], types[name], shape=shape, name=name, base_dir=data.parent)
        graph.register_initializer(value)


def _write_adapter(bundle: Bundle, store: AdapterStore, name: str, stage: Path) -> dict[str, str]:
    """A file for each component that the adapter changes: component -> file."""
    buffers, files = store.buffers(name), {}
    for component in store.components(name):
        tensors = {key: buffers[key] for key in bundle.slots.of(component).input_shapes() if buffers[key].any()}
        if tensors:
            files[component] = f"{name}/{component}{SUFFIX}"
            write_ort_adapter(stage / files[component], tensors)
    return files


def write_ort_adapter(path: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    """One `.onnx_adapter` file of graph inputs by name; each has an axis at least.

    Raises:
        BackendError: the library does not write it, or the disk is full.
    """
    import onnxruntime as ort

    adapter = ort.AdapterFormat()
    adapter.set_adapter_version(_VERSION)
    adapter.set_model_version(_VERSION)
    adapter.set_parameters({name: ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array)) for name, array in tensors.items()})
    with writing_to(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            adapter.export_adapter(str(path))
        except RuntimeError as error:  # the library's own
            found = str(error).splitlines()[0]
            raise lack_of(str(path), error) or BackendError(mismatch(str(path), "an adapter file", found, "report it")) from error
