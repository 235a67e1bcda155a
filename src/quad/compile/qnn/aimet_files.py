"""The same quantization for Qualcomm's own converter: float graphs, and encodings of their tensors in AIMET's two formats.

DIR/GRAPH.onnx                       float, after this target's passes; its tensors' names are those of the encodings
DIR/GRAPH.encodings-1.0.0.json       activation and parameter encodings as lists; `offset` is minus the zero point of unsigned integers
DIR/GRAPH.encodings-2.0.0.json       one list, in the words of ONNX's QuantizeLinear

Source: AIMET's encoding format specification, versions 1.0.0 and 2.0.0.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from quad.compile.artifact import save_graph
from quad.compile.passes import RemoveSites, clean
from quad.core.encoding import Encoding
from quad.core.storage.files import write_bytes, writing_to

VERSION_1, VERSION_2 = "1.0.0", "2.0.0"
ENCODINGS_FILE = f"unet.encodings-{VERSION_2}.json"
ENCODINGS_OPTION = "--encodings"
Json = dict[str, Any]


def write_float(model: ir.Model, graph: str, folder: Path) -> None:
    """The graph that the encodings speak of, under this name; the model stays as it is."""
    with writing_to(folder):
        save_graph(clean(RemoveSites()(model.clone()).model), folder / f"{graph}.onnx")


def write_encodings(graph: str, edges: Mapping[str, Encoding], constants: Mapping[str, Encoding], folder: Path) -> None:
    """Both files of one graph."""
    for version, content in ((VERSION_1, version_1(edges, constants)), (VERSION_2, version_2({**edges, **constants}))):
        write_bytes(folder / f"{graph}.encodings-{version}.json", (json.dumps(content, indent=1) + "\n").encode())


def version_1(edges: Mapping[str, Encoding], constants: Mapping[str, Encoding]) -> Json:
    """Lists of activations and of parameters; signed integers are counted from their smallest value, as that format does."""

    def entry(name: str, encoding: Encoding) -> Json:
        lowest = -(1 << (encoding.bits - 1)) if encoding.signed else 0
        kind = "PER_TENSOR" if encoding.axis is None else "PER_CHANNEL"
        return {"name": name, "enc_type": kind, "dtype": "INT", "bw": encoding.bits, "is_sym": encoding.symmetric,
                "scale": list(encoding.scale), "offset": [lowest - zero for zero in encoding.zero_point]}  # fmt: skip

    return {
        "version": VERSION_1,
        "activation_encodings": [entry(*item) for item in sorted(edges.items())],
        "param_encodings": [entry(*item) for item in sorted(constants.items())],
        "excluded_layers": [],
    }


def version_2(encodings: Mapping[str, Encoding]) -> Json:
    """Every tensor in one list; numbers where there is one scale, lists along `axis` where there are more."""

    def entry(name: str, encoding: Encoding) -> Json:
        fields: Json = {"name": name, "output_dtype": encoding.dtype.name}
        if encoding.axis is None:
            return {**fields, "y_scale": encoding.scale[0], "y_zero_point": encoding.zero_point[0]}
        return {**fields, "y_scale": list(encoding.scale), "y_zero_point": list(encoding.zero_point), "axis": encoding.axis}

    return {"version": VERSION_2, "encodings": [entry(*item) for item in sorted(encodings.items())]}
