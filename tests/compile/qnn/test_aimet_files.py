"""What Qualcomm's own converter is given says the same as what we compile."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir

from quad.compile.qnn.aimet_files import version_1, version_2, write_encodings, write_float
from tests.compile.qnn.placed_htp import Placed


def test_encodings_mean_the_same_in_both_formats(placed: Placed, tmp_path: Path) -> None:
    """What a converter computes from either file is what the encoding itself gives."""
    first, second = version_1(placed.graph.edges, placed.graph.constants), version_2({**placed.graph.edges, **placed.graph.constants})
    own = {**placed.graph.edges, **placed.graph.constants}
    listed = [*first["activation_encodings"], *first["param_encodings"]]
    assert {entry["name"] for entry in listed} == {entry["name"] for entry in second["encodings"]} == set(own)
    for entry in listed:
        encoding = own[entry["name"]]
        lowest = np.iinfo(encoding.dtype).min
        # Counted from the smallest integer: real = scale * (offset + k), k = 0 .. 2^bits - 1.
        np.testing.assert_allclose(
            np.array(entry["scale"]) * entry["offset"], np.array(encoding.scale) * (lowest - np.array(encoding.zero_point))
        )
        assert (entry["enc_type"] == "PER_CHANNEL") == (encoding.axis is not None) == (len(entry["scale"]) > 1)
    write_float(placed.floats, "unet", tmp_path)
    write_encodings("unet", placed.graph.edges, placed.graph.constants, tmp_path)
    names = {value.name for value in ir.load(tmp_path / "unet.onnx").graph.initializers.values()}
    graph = ir.load(tmp_path / "unet.onnx").graph
    names |= {value.name for value in graph.inputs} | {value.name for node in graph for value in node.outputs}
    written = json.loads((tmp_path / "unet.encodings-2.0.0.json").read_text())
    assert {entry["name"] for entry in written["encodings"]} <= names
